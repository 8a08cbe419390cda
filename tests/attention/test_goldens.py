"""Every attention gives what its official class gives, from the class's own state dict: values and gradients.

How the slices in goldens/ were made: slice_golden.py.
"""

import json
from pathlib import Path

import jax
import numpy as np
import pytest

import flatten_jax
from flatten_jax.attention import ATTENTIONS, Site
from flatten_jax.hosts import ReducedAttention

from ..models.reference import state_dict
from .slice_golden import STEP

GOLDENS = sorted(path.stem for path in (Path(__file__).parent / "goldens").glob("*.npz"))
# Attentions that have no official class whose answers could be had: checked by other means in their own tests.
WITHOUT = {"circulant", "gla", "litemla", "mlla", "rala_softmax", "skipat", "svt", "t5", "taylorshift", "ttt"}


def load(name):
    with np.load(Path(__file__).parent / "goldens" / f"{name}.npz") as file:
        golden = dict(file)
    call = json.loads(str(golden["call"]))
    weights = state_dict(json.loads(str(golden["keys"])), json.loads(str(golden["gain"])))
    weights |= {key.removeprefix("buffer:"): value for key, value in golden.items() if key.startswith("buffer:")}
    strip = call["strip"]
    weights = {key.removeprefix(strip): value for key, value in weights.items() if not key.startswith("r.")}
    return golden, call, weights


def layer(call):
    """(module, what it is called with beside x, what from_torch is told)."""
    options = {k: tuple(v) if isinstance(v, list) else v for k, v in call["options"].items()}
    told = dict(grid=tuple(call["grid"]), prefix=call["prefix"])
    if call["sr_ratio"] > 1:
        module = ReducedAttention(call["num_heads"], call["attention"], call["sr_ratio"], options)
        return module, (Site(told["grid"]),), told
    return flatten_jax.LinearAttention(call["attention"], call["num_heads"], options), (), told


@pytest.mark.parametrize("name", GOLDENS)
def test_an_attention_gives_what_its_official_class_gives(name):
    golden, call, weights = load(name)
    module, args, told = layer(call)
    x = np.random.RandomState(7).standard_normal(call["shape"]).astype(np.float32)
    variables = flatten_jax.from_torch(weights, module, example=x, **told)
    cotangent = np.random.RandomState(8).standard_normal(call["shape"]).astype(np.float32)
    kwargs = {} if args else told

    @jax.jit
    def both(variables, x):
        def forward(params, x):
            return module.apply({**variables, "params": params}, x, *args, **kwargs)

        y, pull = jax.vjp(forward, variables["params"], x)
        return y, *pull(cotangent)

    with jax.default_matmul_precision("highest"):
        y, of_params, of_x = both(variables, x)
    _assert_near(y, golden["y"])
    if "dx" in golden:
        _assert_near(of_x, golden["dx"])
    gradients = flatten_jax.to_torch({**variables, "params": of_params}, module, example=x, **told)
    for key, value in golden.items():
        if key.startswith("grad:"):
            _assert_near(gradients[key.removeprefix("grad:").removeprefix(call["strip"])], value)


def _assert_near(found, expected):
    found = np.asarray(found).reshape(-1)  # relative to all of it: of a bias the slice may be one small number
    worst = np.abs(found[::STEP] - expected).max() / np.abs(found).max()
    assert worst < 1e-5, f"relative error {worst:.1e}"


def test_none_is_left_out():
    found = {load(name)[1]["attention"] for name in GOLDENS} | WITHOUT
    assert found == set(ATTENTIONS), "no value in goldens/, and not in WITHOUT: docs/attentions.md, step 3"
