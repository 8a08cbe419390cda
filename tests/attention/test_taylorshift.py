"""TaylorShift against numbers of the official class, and its two orders against each other."""

import jax
import numpy as np

import flatten_jax
from flatten_jax.attention.core import unit
from flatten_jax.attention.taylorshift import taylor_linear, taylor_quadratic


def test_it_gives_the_official_numbers_in_float64():
    """Parameter i of the sorted names is .3 sin(.37 j + .9 i + .1) over its elements j, the input cos(.21 j)."""
    shapes = {"proj.bias": (8,), "proj.weight": (8, 8), "qkv.bias": (24,), "qkv.weight": (24, 8)}
    shapes["temperature"] = (1, 2, 1, 1)
    weights = {
        name: (0.3 * np.sin(0.37 * np.arange(np.prod(shape)) + 0.9 * i + 0.1)).reshape(shape)
        for i, (name, shape) in enumerate(sorted(shapes.items()))
    }
    x = np.cos(0.21 * np.arange(2 * 16 * 8)).reshape(2, 16, 8)
    layer = flatten_jax.LinearAttention("taylorshift", 2)
    variables = flatten_jax.from_torch(weights, layer, example=x, grid=(4, 4))
    with jax.enable_x64(True):
        y = np.asarray(layer.apply(jax.tree.map(np.float64, variables), x, grid=(4, 4)))
    # The weights were rounded to float32 on their way.
    np.testing.assert_allclose(y[0, 0, :4], [0.32982106, -0.12536098, 0.4373851, 0.12096456], atol=1e-7)
    np.testing.assert_allclose(y[1, 15, 7], 0.19503501, atol=1e-7)
    np.testing.assert_allclose([y.sum(), np.abs(y).sum()], [57.6528382905, 65.6898686814], rtol=1e-7)


def test_both_orders_give_one_result_and_one_gradient():
    random = np.random.RandomState(0)
    with jax.enable_x64(True):
        q, k = (unit(random.standard_normal((2, n, 2, 4))) for n in (7, 5))
        v, gradient = random.standard_normal((2, 5, 2, 3)), random.standard_normal((2, 7, 2, 3))
        quadratic, linear = (
            (out, *pull(gradient)) for out, pull in (jax.vjp(f, 3 * q, k, v) for f in (taylor_quadratic, taylor_linear))
        )
    for a, b in zip(quadratic, linear, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-12)


def test_the_number_of_tokens_decides_between_them(monkeypatch):
    """d = 1: the linear order is worth it for more than 3 tokens."""
    import flatten_jax.attention.taylorshift as module

    taken = []
    for name in ("taylor_quadratic", "taylor_linear"):
        form = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *a, name=name, form=form: (taken.append(name), form(*a))[1])
    layer = flatten_jax.LinearAttention("taylorshift", 2)
    for tokens in (3, 4):
        jax.eval_shape(lambda n=tokens: layer.init(jax.random.key(0), np.ones((1, n, 2), np.float32), grid=(1, n)))
    assert taken == ["taylor_quadratic", "taylor_linear"]
