"""Gated linear attention: chunks against the recurrence, and the module written out."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import flatten_jax
from flatten_jax.attention.gla import gated_attention, gated_recurrence


@pytest.mark.parametrize("tokens", [5, 16, 50])
def test_chunks_are_the_recurrence(tokens):
    q, k, v, g = (jax.random.normal(jax.random.key(i), (2, tokens, 2, 3 + (i == 2))) for i in range(4))
    g = -jnp.exp(2 * g)  # from hardly anything to nearly all is forgotten
    found, expected = (jax.jit(f)(q, k, v, g) for f in (gated_attention, gated_recurrence))
    np.testing.assert_allclose(found, expected, atol=2e-5)


def test_gradients_are_those_of_the_recurrence():
    q, k, v, g = (jax.random.normal(jax.random.key(i), (1, 20, 1, 3)) for i in range(4))

    def gradients(f):
        loss = jax.grad(lambda *a: (f(*a) ** 2).mean(), (0, 1, 2, 3))
        return jax.jit(loss)(q, k, v, -jnp.exp(g))

    for found, expected in zip(gradients(gated_attention), gradients(gated_recurrence), strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-5)


def test_the_last_token_sees_the_first_by_the_forward_gates_alone():
    """With one head and one step between two tokens, weights are written down at once."""
    q, k, v, g = (jax.random.normal(jax.random.key(i), (1, 2, 1, 2)) for i in range(4))
    g = -jnp.abs(g)
    a, b, c, d = (np.float64(t)[0, :, 0] for t in (q, k, v, g))
    expected = (a[1] @ b[1] * c[1] + (a[1] * np.exp(d[1])) @ b[0] * c[0]) / 2**0.5
    np.testing.assert_allclose(gated_attention(q, k, v, g)[0, 1, 0], expected, rtol=1e-5)


def test_heads_that_queries_cannot_have_are_refused():
    with pytest.raises(ValueError, match="channels=6 must be divisible by 2 num_heads=4"):
        flatten_jax.LinearAttention("gla", 2).init(jax.random.key(0), jnp.zeros((1, 2, 2, 6)))
