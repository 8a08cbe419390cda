"""Depthwise convolution on the token grid: the local branch of focused linear attention."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp

from flatten_jax.ops import cpu
from flatten_jax.ops.derivative import with_backward
from flatten_jax.ops.initializers import TORCH_CONV, ConvInit
from flatten_jax.ops.platform import platform_dependent


def depthwise_conv(x: jax.Array, kernel: jax.Array, bias: jax.Array | None = None) -> jax.Array:
    """Depthwise convolution of stride 1, zero-padded to keep the size.

    XLA's grouped convolution on the CPU is some thirty times slower than the same sum written as shifted
    multiply-adds, so the lowering is chosen by the platform it is compiled for.

    Args:
        x: (B, height, width, C).
        kernel: (k, k, C) with k odd, one k x k filter per channel (cross-correlation, as in every framework).
        bias: (C,), or None.

    Returns:
        (B, height, width, C), summed in float32 and returned in the dtype of `x`.
    """
    if kernel.ndim != 3 or kernel.shape[0] != kernel.shape[1] or kernel.shape[0] % 2 == 0:
        raise ValueError(f"{kernel.shape=} must be (k, k, channels) with k odd: an even k cannot keep the grid's size")
    if kernel.shape[2] != x.shape[3]:
        raise ValueError(f"{kernel.shape=} has another number of channels than {x.shape=}")
    return cpu.gradient_apart(_convolution(x, kernel, bias))


def _convolution(x: jax.Array, kernel: jax.Array, bias: jax.Array | None) -> jax.Array:
    return platform_dependent(x, kernel, bias, cpu=cpu.shifted_sum, default=_grouped_convolution)


def _forward(x: jax.Array, kernel: jax.Array, bias: jax.Array | None) -> tuple[jax.Array, tuple]:
    return _convolution(x, kernel, bias), (x, kernel, bias)


def _backward(saved: tuple, gradient: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array | None]:
    x, kernel, bias = saved
    of_x, of_kernel = platform_dependent(x, kernel, gradient, cpu=cpu.shifted_gradients, default=_gradients)
    # In half precision a sum over all tokens would be rounded to half, and in float16 overflow.
    return of_x, of_kernel, None if bias is None else cpu.sum_over_tokens(gradient, bias.dtype)


_convolution = with_backward(_convolution, _forward, _backward)


def _gradients(x: jax.Array, kernel: jax.Array, gradient: jax.Array) -> tuple[jax.Array, jax.Array]:
    return jax.vjp(lambda x, kernel: _grouped_convolution(x, kernel, None), x, kernel)[1](gradient)


def _grouped_convolution(x: jax.Array, kernel: jax.Array, bias: jax.Array | None, stride: int = 1) -> jax.Array:
    out = jax.lax.conv_general_dilated(
        x,
        kernel[:, :, None, :].astype(x.dtype),
        window_strides=(stride, stride),
        padding=[(kernel.shape[0] // 2,) * 2] * 2,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=x.shape[3],
    )
    return out if bias is None else out + bias.astype(x.dtype)


class DepthwiseConv(nn.Module):
    """`depthwise_conv` with a learned kernel (k, k, 1, d) and bias (d,), initialised as PyTorch's Conv2d unless told.

    An input of C = h d channels is taken as h heads that share the kernel. With a stride s every s-th row and column is
    kept, from the first on: torch.nn.Conv2d(C, C, k, s, padding=k // 2, groups=C).
    """

    features: int
    kernel_size: int = 5
    dtype: jnp.dtype | None = None
    conv_init: ConvInit = TORCH_CONV
    use_bias: bool = True
    stride: int = 1

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """x: (B, height, width, h * features) -> the same shape, or by `stride` smaller, rounded up."""
        size = self.kernel_size
        kernel = self.param("kernel", self.conv_init.kernel, (size, size, 1, self.features))
        bias = self.param("bias", self.conv_init.bias(size * size), (self.features,)) if self.use_bias else None
        # Kernel and bias stay in float32, as their gradients do, sums over all tokens.
        (x,) = nn.dtypes.promote_dtype(x, dtype=self.dtype or jnp.result_type(x, kernel))
        heads = x.shape[-1] // self.features
        kernel, bias = jnp.tile(kernel[:, :, 0], heads), None if bias is None else jnp.tile(bias, heads)
        if self.stride == 1:
            return depthwise_conv(x, kernel, bias)

        def kept(x: jax.Array, kernel: jax.Array, bias: jax.Array | None) -> jax.Array:
            return depthwise_conv(x, kernel, bias)[:, :: self.stride, :: self.stride]

        strided = partial(_grouped_convolution, stride=self.stride)
        return platform_dependent(x, kernel, bias, cpu=kept, default=strided)
