"""LayerNorm: its values, gradients and dtypes are those of Flax's."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flatten_jax.ops.norm import LayerNorm, layer_norm


def given(dtype=np.float32, mean=0.0):
    random = np.random.default_rng(0)
    x, weight = random.standard_normal((2, 2, 5, 12)).astype(np.float32)
    return jnp.asarray(x + mean, dtype), random.standard_normal(12), random.standard_normal(12), weight


def of_flax(x, scale, bias, epsilon):
    norm = nn.LayerNorm(epsilon=epsilon, use_fast_variance=False)
    return norm.apply({"params": {"scale": scale, "bias": bias}}, x)


@pytest.mark.parametrize("mean", [0.0, 1000.0])
@pytest.mark.parametrize("form", ["cpu", "cuda", "default"])
def test_values_and_gradients(form, mean, monkeypatch):
    """In every form; a large mean costs no digits of the variance."""
    monkeypatch.setattr(
        jax.lax, "platform_dependent", lambda *args, **branches: branches.get(form, branches["default"])(*args)
    )
    *arguments, weight = given(mean=mean)
    ours, of_flax_ = (
        jax.value_and_grad(lambda *args, norm=norm: (norm(*args, 1e-5) * weight).sum(), (0, 1, 2))(*arguments)
        for norm in (layer_norm, of_flax)
    )
    np.testing.assert_allclose(layer_norm(*arguments, 1e-5), of_flax(*arguments, 1e-5), atol=1e-3)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-3), ours, of_flax_)


def test_the_backward_pass_is_the_derivative_in_float64():
    with jax.enable_x64(True):
        x, scale, bias, weight = given(np.float64)
        ours = jax.grad(lambda *args: (layer_norm(*args, 1e-6) * weight).sum(), (0, 1, 2))(x, scale, bias)

        def plain(x, scale, bias):
            centred = x - x.mean(-1, keepdims=True)
            return (centred / jnp.sqrt((centred**2).mean(-1, keepdims=True) + 1e-6) * scale + bias) * weight

        exact = jax.grad(lambda *args: plain(*args).sum(), (0, 1, 2))(x, scale, bias)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-13), ours, exact)


def test_a_result_in_float32_of_half_precision_is_not_rounded_to_half():
    x = given(jnp.bfloat16)[0]
    params = LayerNorm().init(jax.random.key(0), x)
    y = LayerNorm().apply(params, x)
    assert y.dtype == jnp.float32
    np.testing.assert_allclose(y, LayerNorm().apply(params, x.astype(jnp.float32)), rtol=1e-6)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_precision_has_statistics_in_float32(dtype):
    x = given(dtype)[0] * 1000  # squares are beyond float16
    module = LayerNorm(dtype=dtype)
    params = module.init(jax.random.key(0), x)
    y = module.apply(params, x)
    assert y.dtype == dtype
    assert jax.tree.map(lambda p: (p.shape, p.dtype), params["params"]) == {
        "scale": ((12,), jnp.float32),
        "bias": ((12,), jnp.float32),
    }
    expected = LayerNorm().apply(params, x.astype(jnp.float32))
    np.testing.assert_allclose(y.astype(jnp.float32), expected, atol=0.02)
    gradients = jax.grad(lambda p, x: module.apply(p, x).astype(jnp.float32).sum(), (0, 1))(params, x)
    assert gradients[0]["params"]["scale"].dtype == jnp.float32
    assert gradients[1].dtype == dtype
