"""Flow attention from one sequence to another, as in Flowformer's file that is meant for all tasks; no host has it.

The slice: slice_golden.py flow_cross@n64m16.npz functions/flow_cross flow --heads 2 --grid 8 8.
"""

import json
from pathlib import Path

import jax
import numpy as np

from flatten_jax.attention.contract import heads
from flatten_jax.attention.flow import flow_attention

from ..models.reference import state_dict
from .slice_golden import STEP


def test_it_is_the_official_class_from_64_queries_to_16_keys():
    """In float64: float32 would not see that this form has no epsilons outside of its products."""
    with np.load(Path(__file__).parent / "goldens" / "functions" / "flow_cross.npz") as file:
        golden = dict(file)
    weights = state_dict(json.loads(str(golden["keys"])))
    x, context = (
        np.random.RandomState(seed).standard_normal(shape).astype(np.float32).astype(np.float64)
        for seed, shape in ((7, (2, 64, 64)), (9, (2, 16, 64)))
    )

    def projected(x, name):
        return x @ weights[f"{name}_projection.weight"].T + weights[f"{name}_projection.bias"]

    def attend(x):
        sequences = (("query", x), ("key", context), ("value", context))
        q, k, v = (heads(projected(a, name), 2) for name, a in sequences)
        return projected(flow_attention(q, k, v, outer=0.0).reshape(x.shape), "out")

    with jax.enable_x64(True):
        y, pull = jax.vjp(jax.jit(attend), x)
        (of_x,) = pull(np.random.RandomState(8).standard_normal(y.shape))
    for found, expected in ((y, golden["y"]), (of_x, golden["dx"])):
        np.testing.assert_allclose(np.asarray(found).reshape(-1)[::STEP], expected, rtol=0, atol=1e-8)
