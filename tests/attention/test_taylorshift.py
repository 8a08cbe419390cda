"""TaylorShift's two orders give one result, and the values that the official class gives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import flatten_jax
from flatten_jax.attention.core import unit
from flatten_jax.attention.taylorshift import direct_attention, efficient_attention

from .test_focused import sines


def test_both_orders_give_one_result_in_float64():
    with jax.enable_x64(True):
        q, k, v = (jax.random.normal(jax.random.key(i), (2, 20, 2, 4), "float64") for i in range(3))
        q, k = unit(q) * 1.3, unit(k)
        np.testing.assert_allclose(efficient_attention(q, k, v), direct_attention(q, k, v), rtol=1e-12)


@pytest.mark.parametrize("tokens", [16, 25])  # below and above 4^2 + 4 + 1 keys
def test_it_takes_the_cheaper_order(tokens, monkeypatch):
    from flatten_jax.attention import taylorshift

    used = []
    for name in ("direct_attention", "efficient_attention"):
        monkeypatch.setattr(taylorshift, name, lambda q, k, v, name=name: used.append(name) or v)
    layer, side = flatten_jax.LinearAttention("taylorshift", 2), int(tokens**0.5)
    jax.eval_shape(lambda: layer.init(jax.random.key(0), jnp.zeros((1, tokens, 8)), (side, side)))
    assert used == ["direct_attention" if tokens == 16 else "efficient_attention"]


def test_the_official_values():
    """Under weights and input that anyone can write down."""
    with jax.enable_x64(True):
        weights = {
            "proj.bias": sines((8,), 0),
            "proj.weight": sines((8, 8), 1),
            "qkv.bias": sines((24,), 2),
            "qkv.weight": sines((24, 8), 3),
            "temperature": sines((1, 2, 1, 1), 4),
        }
        x = np.cos(0.21 * np.arange(2 * 16 * 8)).reshape(2, 16, 8)
        layer = flatten_jax.LinearAttention("taylorshift", 2)
        variables = flatten_jax.from_torch(weights, layer, example=x, grid=(4, 4))
        y = np.asarray(layer.apply(variables, jnp.asarray(x), (4, 4)))
    np.testing.assert_allclose(y.reshape(-1)[:4], [0.32982106, -0.12536098, 0.4373851, 0.12096456], atol=1e-6)
    np.testing.assert_allclose([y.sum(), np.abs(y).sum()], [57.6528382905, 65.6898686814], rtol=1e-6)
