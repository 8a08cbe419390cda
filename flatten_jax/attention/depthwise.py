"""Depthwise convolution on the token grid: the local branch of focused linear attention."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from flatten_jax.initializers import TORCH_CONV, ConvInit


def depthwise_conv(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Depthwise convolution of stride 1, zero-padded to keep the size.

    XLA's grouped convolution on the CPU is some thirty times slower than the same sum written as shifted
    multiply-adds, so the lowering is chosen by the platform it is compiled for.

    Args:
        x: (B, height, width, C).
        kernel: (k, k, C) with k odd, one k x k filter per channel (cross-correlation, as in every framework).

    Returns:
        (B, height, width, C), summed in float32 and returned in the dtype of `x`.
    """
    if kernel.ndim != 3 or kernel.shape[0] != kernel.shape[1] or kernel.shape[0] % 2 == 0:
        raise ValueError(f"{kernel.shape=} must be (k, k, channels) with k odd: an even k cannot keep the grid's size")
    if kernel.shape[2] != x.shape[3]:
        raise ValueError(f"{kernel.shape=} has another number of channels than {x.shape=}")
    return jax.lax.platform_dependent(x, kernel, cpu=_shifted_sum, default=_grouped_convolution)


def _shifted_sum(x: jax.Array, kernel: jax.Array) -> jax.Array:
    size, (_, height, width, _) = kernel.shape[0], x.shape
    margin = size // 2
    dtype = jnp.promote_types(x.dtype, jnp.float32)
    padded = jnp.pad(x, ((0, 0), (margin, margin), (margin, margin), (0, 0)))
    terms = (
        padded[:, i : i + height, j : j + width].astype(dtype) * kernel[i, j].astype(dtype)
        for i in range(size)
        for j in range(size)
    )
    return sum(terms).astype(x.dtype)


def _grouped_convolution(x: jax.Array, kernel: jax.Array) -> jax.Array:
    return jax.lax.conv_general_dilated(
        x,
        kernel[:, :, None, :].astype(x.dtype),
        window_strides=(1, 1),
        padding=[(kernel.shape[0] // 2,) * 2] * 2,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=x.shape[3],
    )


class DepthwiseConv(nn.Module):
    """`depthwise_conv` with a learned kernel (k, k, 1, d) and bias (d,), initialised as PyTorch's Conv2d unless told.

    An input of C = h d channels is taken as h heads that share the kernel.
    """

    features: int
    kernel_size: int = 5
    dtype: jnp.dtype | None = None
    conv_init: ConvInit = TORCH_CONV

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """x: (B, height, width, h * features) -> the same shape."""
        size = self.kernel_size
        kernel = self.param("kernel", self.conv_init.kernel, (size, size, 1, self.features))
        bias = self.param("bias", self.conv_init.bias(size * size), (self.features,))
        # The kernel stays in float32: its gradient is a sum over all tokens, too large for float16.
        x, _, bias = nn.dtypes.promote_dtype(x, kernel, bias, dtype=self.dtype)
        heads = x.shape[-1] // self.features
        return depthwise_conv(x, jnp.tile(kernel[:, :, 0], heads)) + jnp.tile(bias, heads)
