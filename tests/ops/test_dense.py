"""The linear layer: its gradients, and half precision."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flatten_jax.ops.dense import Dense, affine


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


@pytest.mark.parametrize(("features", "use_bias"), [(3, True), (13, False)])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16], ids=["float32", "bfloat16", "float16"])
def test_gradients_are_those_of_the_product(dtype, features, use_bias):
    """With more features than there are inputs, and with fewer: the CPU takes the narrower factor first."""
    x = jax.random.normal(jax.random.key(0), (2, 5, 8)).astype(dtype)
    kernel, weight = jax.random.normal(jax.random.key(1), (8, features)), jnp.arange(10.0 * features).reshape(2, 5, -1)
    given = (x, kernel.astype(dtype) if dtype == jnp.float32 else kernel, jnp.ones(features) if use_bias else None)
    ours = jax.grad(lambda *args: (affine(*args) * weight).sum(), (0, 1, 2))(*given)

    def plain(x, kernel, bias):
        return ((x @ kernel + (0 if bias is None else bias)) * weight).sum()

    exact = jax.grad(plain, (0, 1, 2))(x.astype(jnp.float32), *given[1:])
    assert (ours[0].dtype, ours[1].dtype) == (dtype, jnp.float32)
    assert (ours[2] is None) != use_bias
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(exact), strict=True):
        tolerance = 1e-5 if dtype == jnp.float32 else 0.03
        np.testing.assert_allclose(a.astype(jnp.float32), b, atol=tolerance * jnp.abs(b).max())


def test_gradient_of_the_kernel_does_not_overflow_in_float16():
    x = jnp.full((400, 2), 1e4, jnp.float16)
    gradient = jax.grad(lambda k: affine(x, k, None).astype(jnp.float32).sum())(jnp.full((2, 3), 1e-3))
    np.testing.assert_allclose(gradient, 4e6, rtol=1e-3)


@pytest.mark.parametrize("use_bias", [True, False])
def test_parts_are_those_of_the_whole(use_bias):
    x = jax.random.normal(jax.random.key(0), (2, 5, 8))
    layer = Dense(7, use_bias=use_bias)
    params = layer.init(jax.random.key(1), x)
    assert jax.tree.structure(layer.init(jax.random.key(1), x, (3, 4))) == jax.tree.structure(params)
    parts = layer.apply(params, x, (3, 4))
    assert [part.shape[-1] for part in parts] == [3, 4]
    np.testing.assert_allclose(jnp.concatenate(parts, axis=-1), layer.apply(params, x), atol=1e-6)
