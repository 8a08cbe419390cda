"""Convolutions: the stems, the steps between stages and the pointwise layers of all models, the reduction of keys."""

from collections.abc import Callable
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp

from flatten_jax.ops import cpu
from flatten_jax.ops.dense import affine, promote
from flatten_jax.ops.derivative import with_backward
from flatten_jax.ops.initializers import TORCH_CONV, ConvInit
from flatten_jax.ops.platform import platform_dependent


def strided_conv(x: jax.Array, kernel: jax.Array, bias: jax.Array | None, stride: int, padding: int = 0) -> jax.Array:
    """Convolution, in the dtype of `x`.

    On the CPU a product of the patches with the kernel: forward where patches do not overlap, and for the gradients,
    for which XLA's convolutions take up to twice the time, and within a loop many times (docs/notes_speed.md).

    Args:
        x: (B, height, width, I).
        kernel: (k, k, I, O), cross-correlated as in every framework; of the dtype of x, or float32 for half precision.
        bias: (O,) likewise, or None.
        stride: in pixels, both ways; what is left at the lower and right edge is not looked at.
        padding: zeros on every side.

    Returns:
        (B, rows, columns, O), rows = (height + 2 padding - k) // stride + 1.
    """
    overlaps = kernel.shape[0] > stride
    plain, product = (partial(f, stride=stride, padding=padding) for f in (_convolution, _product))
    return platform_dependent(x, kernel, bias, cpu=plain if overlaps else product, default=plain)


def _forward(
    x: jax.Array, kernel: jax.Array, bias: jax.Array | None, stride: int, padding: int
) -> tuple[jax.Array, tuple]:
    return strided_conv(x, kernel, bias, stride, padding), (x, kernel, bias)


def _backward(stride: int, padding: int, saved: tuple, gradient: jax.Array) -> tuple[jax.Array, ...]:
    def of(function: Callable) -> Callable:
        at = partial(function, stride=stride, padding=padding)
        return lambda gradient, *saved: jax.vjp(at, *saved)[1](gradient)

    return platform_dependent(gradient, *saved, cpu=of(_product), default=of(_convolution))


strided_conv = with_backward(strided_conv, _forward, _backward, nondiff_argnums=(3, 4))


def _convolution(
    x: jax.Array, kernel: jax.Array, bias: jax.Array | None, stride: int, padding: int, groups: int = 1
) -> jax.Array:
    out = jax.lax.conv_general_dilated(
        x,
        kernel.astype(x.dtype),
        window_strides=(stride, stride),
        padding=[(padding, padding)] * 2,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )
    return out if bias is None else out + bias.astype(x.dtype)


def _product(x: jax.Array, kernel: jax.Array, bias: jax.Array | None, stride: int, padding: int) -> jax.Array:
    patches = cpu.patches(x, kernel.shape[0], stride, padding)
    return affine(patches, kernel.reshape(-1, kernel.shape[-1]), bias)


class Conv(nn.Module):
    """`strided_conv` with a learned kernel and bias (O,): torch.nn.Conv2d(I, O, k, stride, padding, groups=groups).

    The kernel is (k, k, I / groups, O). What is depthwise, of stride 1 or on the CPU, is faster as `DepthwiseConv`.
    """

    features: int
    kernel_size: int
    stride: int = 1
    padding: int = 0
    groups: int = 1
    use_bias: bool = True
    conv_init: ConvInit = TORCH_CONV
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """x: (B, height, width, I) -> (B, rows, columns, features)."""
        size, channels = self.kernel_size, x.shape[-1] // self.groups
        kernel = self.param("kernel", self.conv_init.kernel, (size, size, channels, self.features))
        init = self.conv_init.bias(size * size * channels)
        bias = self.param("bias", init, (self.features,)) if self.use_bias else None
        x, kernel, bias = promote(x, kernel, bias, self.dtype)
        if self.groups > 1:
            return _convolution(x, kernel, bias, self.stride, self.padding, self.groups)
        return strided_conv(x, kernel, bias, self.stride, self.padding)
