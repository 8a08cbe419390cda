"""The exact GELU of all models."""

import jax
import jax.numpy as jnp
from jax import lax

from flatten_jax.ops.derivative import with_backward


def gelu(x: jax.Array) -> jax.Array:
    """x / 2 (1 + erf(x / sqrt(2))), in float32 inside; (Hendrycks and Gimpel, arXiv 1606.08415).

    PyTorch's form. `jax.nn.gelu` has erfc, for relative precision of its tail, which costs XLA's CPU code 2.7 times as
    much for nothing that is noticed here. Only x is kept for the backward pass.
    """
    y = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    return (0.5 * y * (1 + lax.erf(y * 0.5**0.5))).astype(x.dtype)


def _forward(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    return gelu(x), x


def _backward(x: jax.Array, gradient: jax.Array) -> tuple[jax.Array]:
    # Else XLA would find that the forward pass had computed erf(y), and keep that too.
    x = lax.optimization_barrier(x)
    y = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    slope = 0.5 * (1 + lax.erf(y * 0.5**0.5)) + y * jnp.exp(-0.5 * y * y) * (2 * jnp.pi) ** -0.5
    return ((slope * gradient).astype(x.dtype),)


gelu = with_backward(gelu, _forward, _backward)
