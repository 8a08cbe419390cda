"""What the signs do in PolaFormer, and powers that would leave the range of float32."""

import jax
import jax.numpy as jnp
import numpy as np

from flatten_jax.attention import linear_attention
from flatten_jax.attention.polaformer import polarity_attention


def normal(index, tokens=9):
    return jax.random.normal(jax.random.key(index), (2, tokens, 3, 4))


def test_where_all_is_positive_like_signs_see_all_and_unlike_ones_nothing():
    q, k, v = abs(normal(0, 5)), abs(normal(1)), normal(2)
    like, unlike = jnp.split(polarity_attention(q, k, v, jnp.ones((3, 4))), 2, axis=-1)
    np.testing.assert_allclose(like, linear_attention(q, k, v[..., :2]), rtol=1e-5, atol=1e-6)
    assert not unlike.any()
    _, unlike = jnp.split(polarity_attention(-q, k, v, jnp.ones((3, 4))), 2, axis=-1)
    np.testing.assert_allclose(unlike, linear_attention(q, k, v[..., 2:]), rtol=1e-5, atol=1e-6)


def test_large_powers_of_large_numbers_change_nothing_but_the_epsilon():
    """Products of such powers are 1e50."""
    power = jnp.full((3, 4), 5.0)

    def answer(factor):
        q, k = (factor * (jnp.sign(a) + a) for a in (normal(0), normal(1)))
        y, pull = jax.vjp(lambda q, k, power: polarity_attention(q, k, normal(2), power), q, k, power)
        of_q, of_k, of_power = pull(normal(3))
        return y, of_q * factor, of_k * factor, of_power

    for found, expected in zip(answer(1e5)[:3], answer(1.0)[:3], strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max())
    assert np.isfinite(answer(1e5)[3]).all()
