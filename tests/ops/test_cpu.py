"""Sums in both forms, and what keeps XLA's CPU compiler from computing things again."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flatten_jax.ops.cpu import apart, gradient_apart, sum_over_channels, sum_over_tokens


@pytest.fixture(params=["cpu", "default"])
def form(request, monkeypatch):
    """The CPU's branch, and that of all other platforms."""
    monkeypatch.setattr(jax.lax, "platform_dependent", lambda *args, **branches: branches[request.param](*args))


def test_sums_are_sums(form):
    x = np.random.default_rng(0).standard_normal((3, 5, 7)).astype(np.float32)
    weights = np.arange(7, dtype=np.float32)
    np.testing.assert_allclose(sum_over_tokens(x), x.sum((0, 1)), rtol=1e-5)
    np.testing.assert_allclose(sum_over_channels(x), x.sum(-1, keepdims=True), atol=1e-5)
    np.testing.assert_allclose(sum_over_channels(x, weights), (x * weights).sum(-1, keepdims=True), atol=1e-4)


def test_many_tokens_in_half_precision_are_summed_in_the_dtype_that_is_asked_for(form):
    total = sum_over_tokens(jnp.full((5000, 2), 100.0, jnp.float16), jnp.float32)
    assert total.dtype == jnp.float32
    np.testing.assert_array_equal(total, [5e5, 5e5])  # far beyond float16


def residuals(depth, keep):
    """Gradient through a chain of residual blocks, each of which needs what has arrived more than once."""

    def loss(x, kernels):
        for kernel in kernels:
            x = keep(x)
            x = x + jnp.sin(x @ kernel)
        return x.sum()

    shapes = jax.ShapeDtypeStruct((8, 16), np.float32), [jax.ShapeDtypeStruct((16, 16), np.float32)] * depth
    return jax.jit(jax.grad(loss, (0, 1))).lower(*shapes).compile().as_text()


def test_the_gradient_at_every_block_is_a_call_that_is_not_inlined():
    calls = {depth: len(re.findall(r" call\(", residuals(depth, gradient_apart))) for depth in (2, 4)}
    assert calls == {2: 2, 4: 4}
    assert " call(" not in residuals(2, lambda x: x)


def test_what_is_apart_is_differentiated_and_sharded_like_anything_else():
    def function(x, w):
        return jnp.tanh(x * w).sum(axis=1)

    mesh = jax.make_mesh((8,), ("data",))
    spread = jax.NamedSharding(mesh, jax.P("data"))
    x, w = np.random.default_rng(0).standard_normal((16, 4)).astype(np.float32), np.arange(4, dtype=np.float32)

    def derivative(f):
        return jax.jit(jax.value_and_grad(lambda x, w: f(x, w).sum(), (0, 1)))

    compiled = derivative(apart(function)).lower(jax.device_put(x, spread), w).compile()
    assert " call(" in compiled.as_text()
    assert "all-gather" not in compiled.as_text()
    ours, expected = compiled(jax.device_put(x, spread), w), derivative(function)(x, w)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), ours, expected)
