"""The linear layer of all models."""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from flatten_jax.initializers import linear_kernel


@jax.custom_vjp
def matmul(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """x @ kernel in the dtype of x, with the gradient of the kernel in the kernel's own.

    In half precision that gradient, a sum over all tokens, would be rounded to half, and in float16 overflow.

    Args:
        x: (..., I), half precision.
        kernel: (I, O), float32.

    Returns:
        (..., O) in the dtype of x.
    """
    return x @ kernel.astype(x.dtype)


def _forward(x: jax.Array, kernel: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return matmul(x, kernel), (x, kernel)


def _backward(saved: tuple[jax.Array, jax.Array], gradient: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, kernel = saved
    of_kernel = jnp.einsum("...i,...o->io", x, gradient, preferred_element_type=kernel.dtype)
    return gradient @ kernel.astype(x.dtype).T, of_kernel


matmul.defvjp(_forward, _backward)


def _promote(x: jax.Array, kernel: jax.Array, bias: jax.Array | None, *, dtype: jnp.dtype | None) -> tuple:
    """Flax's promotion, but for a kernel that meets half precision."""
    half, whole, bias = nn.dtypes.promote_dtype(x, kernel, bias, dtype=dtype)
    return half, kernel if half.dtype.itemsize == 2 else whole, bias


def _dot_general(x: jax.Array, kernel: jax.Array, dimensions: tuple, precision: jax.lax.PrecisionLike) -> jax.Array:
    if x.dtype == kernel.dtype:
        return jax.lax.dot_general(x, kernel, dimensions, precision=precision)
    return matmul(x, kernel)


class Dense(nn.Dense):
    """nn.Dense with the release's initial values, and `matmul` where the computation is in half precision."""

    kernel_init: nn.initializers.Initializer = linear_kernel
    promote_dtype: Callable = _promote
    dot_general: Callable = _dot_general
