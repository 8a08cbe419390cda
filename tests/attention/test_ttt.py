"""Test-time training: printed numbers of the official classes, and steps against automatic differentiation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import flatten_jax
from flatten_jax.attention.ttt import train_depthwise, train_glu, train_swiglu

from .recipe import answer, assert_is, cosines


def test_vit3_gives_the_numbers_of_its_official_class():
    out = answer(flatten_jax.LinearAttention("ttt", 2), cosines(2, 16, 8), (4, 4))
    assert_is(out, [0.47381134, -0.19838334, -0.04062017, 0.75699056], 0.17345376, 53.7016634837, 78.0707175698)


def test_t5_gives_the_numbers_of_its_official_class():
    out = answer(flatten_jax.LinearAttention("t5", 2), cosines(2, 16, 8), (4, 4))
    assert_is(out, [0.28072832, 0.23269703, 0.14132904, 0.04201295], -0.29373922, -2.7982409544, 47.3818641262)


@pytest.mark.parametrize(
    ("name", "heads", "channels", "parameters"),
    [("ttt", 6, 192, 185_472), ("ttt", 6, 384, 739_584), ("t5", 3, 192, 188_928), ("t5", 6, 384, 672_768)],
)
def test_parameters_are_as_many_as_in_the_official_class(name, heads, channels, parameters):
    layer, x = flatten_jax.LinearAttention(name, heads), jnp.zeros((1, 2, 2, channels))
    made = jax.eval_shape(lambda: layer.init(jax.random.key(0), x))
    assert sum(leaf.size for leaf in jax.tree.leaves(made)) == parameters


def test_a_step_goes_along_the_gradient_of_the_loss():
    k, v, w1, w2, w3 = (
        jax.random.normal(key, shape)
        for key, shape in zip(jax.random.split(jax.random.key(0), 5), [(1, 6, 1, 4)] * 2 + [(1, 4, 4)] * 3, strict=True)
    )

    def clipped(g, axis):
        return g / (jnp.linalg.norm(g, axis=axis, keepdims=True) + 1)

    def loss(f):
        return lambda *w: -0.5 * (v[0, :, 0] * f(k[0, :, 0], *(a[0] for a in w))).sum() / 6

    def glu(x, w1, w2):
        return (x @ w1) * jax.nn.silu(x @ w2)

    def swiglu(x, w1, w2, w3):
        return (jax.nn.silu(x @ w1) * (x @ w2)) @ w3

    for new, old, g in zip(train_glu(k, v, w1, w2, 0.5), (w1, w2), jax.grad(loss(glu), (0, 1))(w1, w2), strict=True):
        np.testing.assert_allclose(new[0], old - clipped(g, 1), atol=1e-6)
    weights = (w1, w2, w3)
    step = train_swiglu(k, v, *weights, rate=0.5)
    for new, old, g in zip(step, weights, jax.grad(loss(swiglu), (0, 1, 2))(*weights), strict=True):
        np.testing.assert_allclose(new[0], old - g, atol=1e-6)


def test_a_step_of_the_convolution_goes_along_the_gradient_of_the_loss():
    k, v = (jax.random.normal(jax.random.key(i), (1, 3, 5, 2)) for i in range(2))
    w = jax.random.normal(jax.random.key(2), (3, 3, 2))

    def loss(w):
        out = jax.lax.conv_general_dilated(
            k, w[:, :, None], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=2
        )
        return -0.5 * (v * out).sum() / 15

    g = jax.grad(loss)(w)
    expected = w - g / (jnp.linalg.norm(g.reshape(9, 2), axis=0) + 1)
    np.testing.assert_allclose(train_depthwise(k, v, w, 0.5)[0], expected, atol=1e-6)


def test_what_all_keys_share_does_not_matter_to_t5():
    layer, x = flatten_jax.LinearAttention("t5", 2), jax.random.normal(jax.random.key(0), (1, 3, 4, 8))
    params = jax.tree.map(lambda a: 20 * a, jax.jit(layer.init)(jax.random.key(1), x)["params"])

    @jax.jit
    def apply(bias):
        return layer.apply({"params": {**params, "qkv": {**params["qkv"], "bias": bias}}}, x)

    shared = jnp.zeros(24).at[8:16].set(3.0)  # of the keys
    plain = apply(0 * shared)
    np.testing.assert_allclose(apply(shared), plain, atol=1e-5 * jnp.abs(plain).max())
    assert jnp.abs(apply(jnp.roll(shared, 8)) - plain).max() > 0.1 * jnp.abs(plain).max()
