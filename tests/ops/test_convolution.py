"""Strided convolutions: one function, a product of patches on the CPU."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flatten_jax.ops.convolution import Conv, _convolution, strided_conv
from flatten_jax.training.sharding import make_mesh, over_data


@pytest.mark.parametrize(("size", "stride", "padding"), [(2, 2, 0), (3, 2, 1), (7, 4, 3), (2, 2, 1), (1, 2, 0)])
@pytest.mark.parametrize("picture", [(8, 12), (9, 15)])  # the second leaves pixels at the edges
def test_it_is_the_convolution_with_its_gradients(size, stride, padding, picture):
    x = jax.random.normal(jax.random.key(0), (2, *picture, 3))
    kernel = jax.random.normal(jax.random.key(1), (size, size, 3, 5))
    bias = jax.random.normal(jax.random.key(2), (5,))
    ours, gradients = jax.vjp(lambda *args: strided_conv(*args, stride, padding), x, kernel, bias)
    plain, expected = jax.vjp(lambda *args: _convolution(*args, stride, padding), x, kernel, bias)
    np.testing.assert_allclose(ours, plain, rtol=1e-5, atol=2e-5)
    weight = jax.random.normal(jax.random.key(3), ours.shape)
    for a, b in zip(gradients(weight), expected(weight), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=2e-5)


def test_its_gradients_are_products_on_the_cpu():
    """XLA's own are many times as slow within a loop, as accumulation makes one."""
    x, kernel, bias = jnp.ones((2, 8, 8, 4)), jnp.ones((3, 3, 4, 8)), jnp.ones(8)
    pull = jax.jit(lambda *args: jax.vjp(lambda *args: strided_conv(*args, 2, 1), *args[1:])[1](args[0]))
    assert " convolution(" not in pull.lower(jnp.ones((2, 4, 4, 8)), x, kernel, bias).compile().as_text()


def test_gradients_of_halves_are_summed_in_float32():
    x = jnp.ones((1, 400, 400, 1), jnp.float16)  # 160,000 patches, float16 ends at 65,504
    kernel, bias = jnp.ones((1, 1, 1, 1)), jnp.ones(1)
    sums = jax.grad(lambda k, b: strided_conv(x, k, b, 1).sum(dtype=jnp.float32), (0, 1))(kernel, bias)
    np.testing.assert_allclose([float(total.squeeze()) for total in sums], 160_000)


def test_a_batch_that_is_spread_over_devices_stays_there():
    spread = over_data(make_mesh(jax.devices()))
    x = jax.device_put(jax.random.normal(jax.random.key(0), (16, 8, 8, 4)), spread)
    kernel, bias = jnp.ones((2, 2, 4, 8)), jnp.ones(8)
    gradient = jax.jit(jax.grad(lambda *args: (strided_conv(*args, 2) ** 2).sum(), (0, 1, 2)))
    text = gradient.lower(x, kernel, bias).compile().as_text()
    assert "all-gather" not in text
    assert "all-reduce" in text  # of the kernel's gradient


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16], ids=["bfloat16", "float16"])
def test_half_computes_in_half_with_the_same_parameters(dtype):
    x = jax.random.normal(jax.random.key(0), (2, 8, 8, 3))
    params = Conv(5, 4, 4).init(jax.random.key(1), x)
    y = Conv(5, 4, 4, dtype=dtype).apply(params, x)
    assert y.dtype == dtype
    np.testing.assert_allclose(y.astype(jnp.float32), Conv(5, 4, 4).apply(params, x), atol=2 * jnp.finfo(dtype).eps)
