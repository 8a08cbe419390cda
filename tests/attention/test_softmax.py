"""Softmax attention against the formula written out."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flatten_jax.attention.softmax import softmax_attention


def plain(q, k, v, heads, bias=0.0):
    """NumPy, one example: (N, C), (M, C), (M, C), bias (h, N, M)."""
    q, k, v = (np.float64(x).reshape(len(x), heads, -1).transpose(1, 0, 2) for x in (q, k, v))
    scores = q @ k.transpose(0, 2, 1) / q.shape[-1] ** 0.5 + bias
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    out = weights / weights.sum(-1, keepdims=True) @ v
    return out.transpose(1, 0, 2).reshape(out.shape[1], -1)


def qkv(batch=6, queries=4, keys=3, channels=8):
    shapes = (queries, keys, keys)
    return [jax.random.normal(jax.random.key(i), (batch, n, channels)) for i, n in enumerate(shapes)]


def attend(q, k, v, heads, bias=None):
    split = (x.reshape(*x.shape[:2], heads, -1) for x in (q, k, v))
    return softmax_attention(*split, bias).reshape(q.shape)


def test_it_is_the_formula():
    q, k, v = qkv()
    out = attend(q, k, v, 2)
    for b in range(6):
        np.testing.assert_allclose(out[b], plain(q[b], k[b], v[b], 2), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("heads_of_bias", [1, 2])
def test_each_window_has_its_own_bias(heads_of_bias):
    q, k, v = qkv()
    bias = 3 * jax.random.normal(jax.random.key(9), (3, heads_of_bias, 4, 3))  # three windows, two pictures
    out = attend(q, k, v, 2, bias)
    for b in range(6):
        np.testing.assert_allclose(out[b], plain(q[b], k[b], v[b], 2, np.asarray(bias[b % 3])), rtol=1e-4, atol=1e-5)


def test_large_scores_in_half_precision_stay_finite():
    q, k, v = (60 * x.astype(jnp.float16) for x in qkv())
    out = attend(q, k, v, 1)
    assert out.dtype == jnp.float16
    assert np.isfinite(out).all()


def test_float16_has_a_gradient_on_the_cpu():
    q, k, v = (x.astype(jnp.float16) for x in qkv())
    gradient = jax.grad(lambda q: attend(q, k, v, 2).astype(jnp.float32).sum())(q)
    assert gradient.dtype == jnp.float16
    assert np.isfinite(gradient).all() and np.any(gradient)
