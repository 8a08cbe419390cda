"""What XLA does badly on one platform, done another way there: fusions and sums (figures: docs/notes_speed.md)."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.experimental.xla_metadata import set_xla_metadata


def apart(function: Callable) -> Callable:
    """`function` of arrays, compiled by itself: its arguments and results are arrays in memory, fused with nothing.

    XLA's CPU compiler fuses an operation into everything that reads it, and computes it there again: a chain of
    residual gradients once for every block below. It also fuses what it then finds no vector instructions for.
    `jax.lax.optimization_barrier` does not help, XLA removes it before it fuses. What does is a call that may not be
    inlined, which differentiation, sharding and loops pass through.

    For the CPU's branch of `jax.lax.platform_dependent`; GPUs and TPUs fuse well.
    """
    compiled = jax.jit(function)

    @functools.wraps(function)
    def call(*args):
        with set_xla_metadata(inlineable="false"):
            return compiled(*args)

    return call


def not_shared(x: jax.Array) -> jax.Array:
    """x, of which XLA takes nothing over from elsewhere on NVIDIA GPUs.

    For the backward pass of what is one kernel in the forward: norms that both compute would be computed once, which
    tears that kernel apart, and what is normalised would be kept, in float32.
    """
    return jax.lax.platform_dependent(x, cuda=jax.lax.optimization_barrier, default=lambda x: x)


def sum_over_tokens(x: jax.Array, dtype: jnp.dtype | None = None) -> jax.Array:
    """(..., C) -> (C,), summed in `dtype` (default: that of x). On the CPU a product with ones, six times as fast."""
    dtype = x.dtype if dtype is None else dtype

    def product(x: jax.Array) -> jax.Array:
        return jnp.matmul(jnp.ones((1, len(x)), x.dtype), x, preferred_element_type=dtype)[0]

    def plain(x: jax.Array) -> jax.Array:
        return jnp.sum(x, axis=0, dtype=dtype)

    return jax.lax.platform_dependent(x.reshape(-1, x.shape[-1]), cpu=product, default=plain)


def sum_over_channels(x: jax.Array, weights: jax.Array | float = 1.0) -> jax.Array:
    """sum_c x_c w_c: (..., C), weights (C,) or one number -> (..., 1). On the CPU a product with the weights."""
    weights = jnp.broadcast_to(jnp.asarray(weights, x.dtype), x.shape[-1:])

    def product(x: jax.Array, weights: jax.Array) -> jax.Array:
        return (x.reshape(-1, len(weights)) @ weights[:, None]).reshape(*x.shape[:-1], 1)

    def plain(x: jax.Array, weights: jax.Array) -> jax.Array:
        return jnp.sum(x * weights, axis=-1, keepdims=True)

    return jax.lax.platform_dependent(x, weights, cpu=product, default=plain)


@jax.custom_vjp
def gradient_apart(x: jax.Array) -> jax.Array:
    """x, whose gradient is computed once on the CPU, and not again in everything that reads it."""
    return x


@apart
def _same(x: jax.Array) -> jax.Array:
    return x


def _gradient_apart_forward(x: jax.Array) -> tuple[jax.Array, None]:
    return x, None


def _gradient_apart_backward(_: None, gradient: jax.Array) -> tuple[jax.Array]:
    return (jax.lax.platform_dependent(gradient, cpu=_same, default=lambda x: x),)


gradient_apart.defvjp(_gradient_apart_forward, _gradient_apart_backward)
