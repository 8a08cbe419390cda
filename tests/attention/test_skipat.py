"""SkipAt against the official function, whose input is what the attention before gave.

The slice: slice_golden.py skipat_function.npz functions/skipat skipat --heads 6 --grid 14 14.
"""

import json
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import flatten_jax
from flatten_jax.attention import Site, make_attention

from ..models.reference import state_dict
from .slice_golden import STEP


class Again(nn.Module):
    """SkipAt, given its input as what was before."""

    @nn.compact
    def __call__(self, x, site):
        attention = make_attention("skipat", 6)
        nn.share_scope(self, attention)
        return attention(jnp.zeros_like(x), site.replace(before=x))


def test_it_is_the_official_function():
    with np.load(Path(__file__).parent / "goldens" / "functions" / "skipat.npz") as file:
        golden = dict(file)
    x, grid = np.random.RandomState(7).standard_normal((2, 196, 96)).astype(np.float32), (14, 14)
    weights = state_dict(json.loads(str(golden["keys"])))
    variables = flatten_jax.from_torch(weights, Again(), example=x, grid=grid)
    with jax.default_matmul_precision("highest"):
        y = jax.jit(lambda x: Again().apply(variables, x, Site(grid)))(x)
    assert np.abs(np.asarray(y).reshape(-1)[::STEP] - golden["y"]).max() < 1e-5 * np.abs(golden["y"]).max()


def test_a_class_token_stays_and_changes_nothing_of_the_others():
    x = jax.random.normal(jax.random.key(0), (2, 1 + 6, 12))
    variables = Again().init(jax.random.key(1), x, Site((2, 3), prefix=1))
    y = Again().apply(variables, x, Site((2, 3), prefix=1))
    np.testing.assert_array_equal(y[:, 0], x[:, 0])
    np.testing.assert_allclose(y[:, 1:], Again().apply(variables, x[:, 1:], Site((2, 3))), rtol=1e-6)


def test_it_cannot_be_the_first():
    with pytest.raises(ValueError, match="cannot be the first of a stage"):
        flatten_jax.LinearAttention("skipat", 2).init(jax.random.key(0), jnp.zeros((1, 2, 3, 4)))
