"""Relative positions by Fourier transforms are those of the formula written out."""

import jax
import numpy as np
import pytest

from flatten_jax.attention.kernel_rpe import positive_random_features, toeplitz_attention
from flatten_jax.hosts.grids import relative_position_index


@pytest.mark.parametrize("prefix", [0, 2])
def test_it_is_the_dense_formula(prefix):
    grid, h = (3, 5), 2
    n = prefix + 15
    with jax.enable_x64(True):
        rng = np.random.default_rng(0)
        q, k = np.abs(rng.standard_normal((2, 2, n, h, 4)))
        v, table = rng.standard_normal((2, n, h, 3)), rng.standard_normal((5 * 9, h))
        weight = np.ones((h, n, n))
        weight[:, prefix:, prefix:] = np.exp(table[relative_position_index(grid)]).transpose(2, 0, 1)
        scores = np.einsum("bnhr,bmhr->bhnm", q, k) * weight
        expected = np.einsum("bhnm,bmhd->bnhd", scores / scores.sum(-1, keepdims=True), v)
        np.testing.assert_allclose(toeplitz_attention(q, k, v, table, grid), expected, rtol=1e-10)


def test_random_features_are_positive_and_estimate_the_exponential_of_directions():
    x, y = jax.random.normal(jax.random.key(0), (2, 1, 1, 1, 4))
    features = [
        np.asarray(positive_random_features(a, jax.random.normal(jax.random.key(1), (1, 200_000, 4)))) for a in (x, y)
    ]
    cosine = (x * y).sum() / np.linalg.norm(x) / np.linalg.norm(y)
    assert min(f.min() for f in features) > 0
    np.testing.assert_allclose((features[0] * features[1]).sum(), np.exp(cosine), rtol=0.02)
