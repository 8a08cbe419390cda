"""Blocks of tokens with mixed states: printed numbers of the official class, and both normalisers written out."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import flatten_jax
from flatten_jax.attention.mhla import block_mixed_attention, from_blocks, initial_mixing, to_blocks

from .recipe import answer, assert_is, cosines


def test_it_gives_the_numbers_of_the_official_class():
    layer = flatten_jax.LinearAttention("mhla", 2, block_side=2, transform="linear", qkv_bias=True)
    x = np.asarray(from_blocks(jnp.asarray(cosines(2, 4, 4, 8)), (4, 4), 2))
    out = np.asarray(to_blocks(answer(layer, x, (4, 4), as_made=("piece_attn.conv.weight",)), (4, 4), 2))
    assert_is(out, [0.41582329, -0.91621462, 0.27487803], 0.585382, -5.0743561867, 71.4183283304)


def test_mixing_starts_by_the_distance_of_blocks():
    np.testing.assert_allclose(initial_mixing((2, 2), "linear")[0], [0.630602, 0.184699, 0.184699, 0], atol=1e-6)
    np.testing.assert_allclose(initial_mixing((1, 1), "cos"), [[1]])


def test_normalisers_are_those_written_out():
    q, k, v = (jax.random.uniform(jax.random.key(i), (1, 3, 4, 1, 2)) for i in range(3))
    mixing = jax.random.uniform(jax.random.key(3), (3, 3))
    a, b, c = (np.float64(t)[0, :, :, 0] for t in (q, k, v))
    states = np.einsum("mn,ntd,nte->mde", mixing, b, c)
    paper = np.einsum("mtd,mn,nd->mt", a, mixing, b.sum(1))
    code = np.einsum("mn,ntd,nd->mt", mixing, a, b.sum(1))
    for name, z in (("paper", paper), ("code", code)):
        found = block_mixed_attention(q, k, v, mixing, name)[0, :, :, 0]
        np.testing.assert_allclose(found, np.einsum("mtd,mde->mte", a, states) / z[..., None], rtol=1e-4)


def test_blocks_that_do_not_fill_the_grid_are_refused():
    with pytest.raises(ValueError, match=r"block_side=4 must divide the sides of grid=\(4, 6\)"):
        flatten_jax.LinearAttention("mhla", 2, block_side=4).init(jax.random.key(0), jnp.zeros((1, 4, 6, 8)))
