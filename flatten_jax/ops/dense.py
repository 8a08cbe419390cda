"""The linear layer of all models."""

from collections.abc import Sequence
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name

from flatten_jax.ops import cpu
from flatten_jax.ops.derivative import with_backward
from flatten_jax.ops.initializers import NORMAL, ConvInit
from flatten_jax.ops.platform import platform_dependent

PRODUCT = "product"  # what rematerialisation may keep of a linear layer: its result


def affine(x: jax.Array, kernel: jax.Array, bias: jax.Array | None) -> jax.Array:
    """x @ kernel + bias in the dtype of x, with gradients of kernel and bias in their own.

    In half precision those gradients, sums over all tokens, would be rounded to half, and in float16 overflow.

    Args:
        x: (..., I), any floating dtype.
        kernel: (I, O), of the dtype of x, or float32 for an x in half precision.
        bias: (O,) likewise, or None.

    Returns:
        (..., O) in the dtype of x.
    """
    out = x @ kernel.astype(x.dtype)
    return out if bias is None else out + bias.astype(x.dtype)


def _forward(x: jax.Array, kernel: jax.Array, bias: jax.Array | None) -> tuple[jax.Array, tuple]:
    return affine(x, kernel, bias), (x, kernel, bias)


def _backward(saved: tuple, gradient: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array | None]:
    x, kernel, bias = saved
    of_kernel = platform_dependent(
        *(a.reshape(-1, a.shape[-1]) for a in (x, gradient)),
        cpu=partial(cpu.transposed_product, dtype=kernel.dtype),
        default=partial(_product, dtype=kernel.dtype),
    )
    of_bias = None if bias is None else cpu.sum_over_tokens(gradient, kernel.dtype).astype(bias.dtype)
    return gradient @ kernel.astype(x.dtype).T, of_kernel, of_bias


affine = with_backward(affine, _forward, _backward)


def _product(x: jax.Array, gradient: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """x^T gradient: (N, I), (N, O) -> (I, O)."""
    return jnp.einsum("ni,no->io", x, gradient, preferred_element_type=dtype)


def promote(
    x: jax.Array, kernel: jax.Array, bias: jax.Array | None, dtype: jnp.dtype | None
) -> tuple[jax.Array, jax.Array, jax.Array | None]:
    """All in `dtype` (None: that of x and the kernel together), for half precision kernel and bias as they are."""
    (x,) = nn.dtypes.promote_dtype(x, dtype=dtype or jnp.result_type(x, kernel))
    if x.dtype.itemsize > 2:
        kernel, bias = kernel.astype(x.dtype), None if bias is None else bias.astype(x.dtype)
    return x, kernel, bias


class Dense(nn.Module):
    """A linear layer, of the release's initial values unless told: `kernel` (I, O) and `bias` (O,), in float32.

    Attributes:
        features: O.
        use_bias: whether there is a bias.
        dtype: of the computation (None: that of the input and the parameters together).
        initial: values of kernel and bias; those of a 1 x 1 convolution, where the original has one, say.
    """

    features: int
    use_bias: bool = True
    dtype: jnp.dtype | None = None
    initial: ConvInit = NORMAL

    @nn.compact
    def __call__(self, x: jax.Array, widths: Sequence[int] = ()) -> jax.Array | tuple[jax.Array, ...]:
        """x: (..., I) -> (..., O); with `widths`, whose sum is O, its parts, each by a product of its own."""
        kernel = self.param("kernel", self.initial.kernel, (x.shape[-1], self.features))
        bias = self.param("bias", self.initial.bias(x.shape[-1]), (self.features,)) if self.use_bias else None
        x, kernel, bias = promote(x, kernel, bias, self.dtype)
        if not widths:
            return checkpoint_name(affine(x, kernel, bias), PRODUCT)
        ends = np.cumsum(widths)[:-1]
        kernels = jnp.split(kernel, ends, axis=1)
        biases = [None] * len(widths) if bias is None else jnp.split(bias, ends)
        return tuple(checkpoint_name(affine(x, *part), PRODUCT) for part in zip(kernels, biases, strict=True))
