"""Relative positions by FFT, against the sum over keys written out."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flatten_jax.attention.kernel_rpe import relative_attention
from flatten_jax.hosts.grids import relative_position_index


@pytest.mark.parametrize("prefix", [0, 2])
def test_it_is_the_sum_over_keys(prefix):
    grid, count = (3, 4), 12 + prefix
    q, k, v = (jax.random.uniform(jax.random.key(i), (1, count, 2, 3 - (i == 2))) for i in range(3))
    table = jax.random.normal(jax.random.key(3), (5 * 7, 2))
    weights = np.ones((2, count, count))
    weights[:, prefix:, prefix:] = np.exp(np.float64(table))[relative_position_index(grid)].transpose(2, 0, 1)
    weights = weights * np.einsum("nhd,mhd->hnm", q[0], k[0])
    expected = np.einsum("hnm,mhe->nhe", weights / weights.sum(-1, keepdims=True), v[0])
    np.testing.assert_allclose(relative_attention(q, k, v, table, grid, prefix)[0], expected, atol=1e-5)


def test_queries_without_features_get_zeros():
    q, k, v = jnp.zeros((1, 4, 1, 2)), jnp.ones((1, 4, 1, 2)), jnp.ones((1, 4, 1, 3))
    assert not relative_attention(q, k, v, jnp.zeros((9, 1)), (2, 2)).any()
