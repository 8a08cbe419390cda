"""Gated linear attention in chunks is the recurrence, for gates of any size."""

import jax
import numpy as np
import pytest

from flatten_jax.attention.gla import gated_attention, gated_recurrence


@pytest.mark.parametrize("gate", [0.05, 3.0, 500.0])
def test_chunks_are_the_recurrence_with_its_gradients(gate):
    """37 tokens: two whole chunks and a part; gates so strong that their exponentials vanish."""
    q, k, v, g = (jax.random.normal(jax.random.key(i), (2, 37, 2, 4)) for i in range(4))
    g = -gate * abs(g)
    (ours, ours_pull), (plain, plain_pull) = (jax.vjp(f, q, k, v, g) for f in (gated_attention, gated_recurrence))
    np.testing.assert_allclose(ours, plain, rtol=1e-4, atol=1e-5)
    for a, b in zip(ours_pull(q), plain_pull(q), strict=True):
        assert np.isfinite(a).all()
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)
