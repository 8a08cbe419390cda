"""The linear layer in half precision."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flatten_jax.linear import Dense, matmul


def test_float32_is_nn_dense():
    x = jax.random.normal(jax.random.key(0), (2, 5, 8))
    params = Dense(3).init(jax.random.key(1), x)
    np.testing.assert_allclose(
        Dense(3).apply(params, x), x @ params["params"]["kernel"] + params["params"]["bias"], atol=1e-6
    )


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_computes_in_half_with_the_same_parameters(dtype):
    x = jax.random.normal(jax.random.key(0), (2, 5, 8))
    params = Dense(3).init(jax.random.key(1), x)
    y = Dense(3, dtype=dtype).apply(params, x)
    assert y.dtype == dtype
    np.testing.assert_allclose(y.astype(jnp.float32), Dense(3).apply(params, x), atol=2e-3)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_gradients_are_those_of_the_product(dtype):
    x = jax.random.normal(jax.random.key(0), (2, 5, 8)).astype(dtype)
    kernel, weight = jax.random.normal(jax.random.key(1), (8, 3)), jax.random.normal(jax.random.key(2), (2, 5, 3))
    ours = jax.grad(lambda x, k: (matmul(x, k) * weight).sum(), (0, 1))(x, kernel)
    exact = jax.grad(lambda x, k: ((x @ k) * weight).sum(), (0, 1))(x.astype(jnp.float32), kernel)
    assert (ours[0].dtype, ours[1].dtype) == (dtype, jnp.float32)
    for a, b in zip(ours, exact, strict=True):
        np.testing.assert_allclose(a.astype(jnp.float32), b, atol=0.03 * jnp.abs(b).max())


def test_gradient_of_the_kernel_does_not_overflow_in_float16():
    x = jnp.full((400, 2), 1e4, jnp.float16)
    gradient = jax.grad(lambda k: matmul(x, k).astype(jnp.float32).sum())(jnp.full((2, 3), 1e-3))
    np.testing.assert_allclose(gradient, 4e6, rtol=1e-3)
