"""Depthwise convolution on the token grid: the local branch of focused linear attention."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from flatten_jax.ops.cpu import apart, gradient_apart, sum_over_tokens
from flatten_jax.ops.initializers import TORCH_CONV, ConvInit


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
    return gradient_apart(_convolution(x, kernel, bias))


@jax.custom_vjp
def _convolution(x: jax.Array, kernel: jax.Array, bias: jax.Array | None) -> jax.Array:
    return jax.lax.platform_dependent(x, kernel, bias, cpu=_shifted_sum, default=_grouped_convolution)


def _forward(x: jax.Array, kernel: jax.Array, bias: jax.Array | None) -> tuple[jax.Array, tuple]:
    return _convolution(x, kernel, bias), (x, kernel, bias)


def _backward(saved: tuple, gradient: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array | None]:
    x, kernel, bias = saved
    of_x, of_kernel = jax.lax.platform_dependent(x, kernel, gradient, cpu=_shifted_gradients, default=_gradients)
    # In half precision a sum over all tokens would be rounded to half, and in float16 overflow.
    return of_x, of_kernel, None if bias is None else sum_over_tokens(gradient, bias.dtype)


_convolution.defvjp(_forward, _backward)


def _gradients(x: jax.Array, kernel: jax.Array, gradient: jax.Array) -> tuple[jax.Array, jax.Array]:
    return jax.vjp(lambda x, kernel: _grouped_convolution(x, kernel, None), x, kernel)[1](gradient)


def _shifted_gradients(x: jax.Array, kernel: jax.Array, gradient: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Of x: the same sum with the kernel turned. Of the kernel: see `_kernel_gradient`."""
    of_kernel = _kernel_gradient(x, gradient, kernel.shape[0]).astype(kernel.dtype)
    return _shifted_sum(gradient, kernel[::-1, ::-1], None), of_kernel


def _shifted_sum(x: jax.Array, kernel: jax.Array, bias: jax.Array | None) -> jax.Array:
    return _sum_of_shifts(_pad(x, kernel.shape[0] // 2), kernel, bias)


@apart
def _sum_of_shifts(padded: jax.Array, kernel: jax.Array, bias: jax.Array | None) -> jax.Array:
    """One pass, in vectors of channels. With what follows, such as a division into heads, XLA would find no vectors."""
    size = kernel.shape[0]
    height, width = (side - size + 1 for side in padded.shape[1:3])
    dtype = jnp.promote_types(padded.dtype, jnp.float32)
    out = sum(
        padded[:, i : i + height, j : j + width].astype(dtype) * kernel[i, j].astype(dtype)
        for i in range(size)
        for j in range(size)
    )
    return (out if bias is None else out + bias.astype(dtype)).astype(padded.dtype)


def _kernel_gradient(x: jax.Array, gradient: jax.Array, size: int) -> jax.Array:
    """(k, k, C), sums of products over images and grid.

    In blocks of up to eight rows of the grid, which stay in the cache; sums over their rows are vectors of channels.
    The loop is not over images, since those may be sharded. Sums of sums, over images and then columns, are few.
    """
    batch, height, width, channels = x.shape
    blocks = -(-height // 8)
    rows = -(-height // blocks)
    more = blocks * rows - height  # rows of zeros, where blocks do not divide the grid
    padded = jnp.pad(_pad(x, size // 2), ((0, 0), (0, more), (0, 0), (0, 0)))
    gradient = jnp.pad(gradient, ((0, 0), (0, more), (0, 0), (0, 0)))

    def add_block(block: jax.Array, totals: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        here = jax.lax.dynamic_slice_in_dim(gradient, block * rows, rows, axis=1)
        around = jax.lax.dynamic_slice_in_dim(padded, block * rows, rows + size - 1, axis=1)
        return _add_products(totals, around, here)

    dtype = jnp.promote_types(x.dtype, jnp.float32)
    totals = (jnp.zeros((batch, size, width, channels), dtype),) * size
    totals = jax.lax.fori_loop(0, blocks, add_block, totals)
    of_images = [jnp.ones(batch, dtype) @ total.reshape(batch, -1) for total in totals]
    return _sum_of_columns(jnp.stack(of_images).reshape(size, size, width, channels)).swapaxes(0, 1)


@apart
def _add_products(totals: tuple[jax.Array, ...], around: jax.Array, here: jax.Array) -> tuple[jax.Array, ...]:
    """totals[j] (B, k, width, C) + for every row i of the kernel, x shifted by (i, j) times the gradient."""
    size, rows, width = len(totals), here.shape[1], here.shape[2]
    around, here = (a.astype(totals[0].dtype) for a in (around, here))
    return tuple(
        total + sum(around[:, row : row + size, j : j + width] * here[:, row : row + 1] for row in range(rows))
        for j, total in enumerate(totals)
    )


@apart
def _sum_of_columns(x: jax.Array) -> jax.Array:
    """(k, k, width, C) -> (k, k, C)."""
    return sum(x[:, :, column] for column in range(x.shape[2]))


def _pad(x: jax.Array, margin: int) -> jax.Array:
    return jnp.pad(x, ((0, 0), (margin, margin), (margin, margin), (0, 0)))


def _grouped_convolution(x: jax.Array, kernel: jax.Array, bias: jax.Array | None) -> jax.Array:
    out = jax.lax.conv_general_dilated(
        x,
        kernel[:, :, None, :].astype(x.dtype),
        window_strides=(1, 1),
        padding=[(kernel.shape[0] // 2,) * 2] * 2,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=x.shape[3],
    )
    return out if bias is None else out + bias.astype(x.dtype)


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
        # Kernel and bias stay in float32, as their gradients do, sums over all tokens.
        (x,) = nn.dtypes.promote_dtype(x, dtype=self.dtype or jnp.result_type(x, kernel))
        heads = x.shape[-1] // self.features
        return depthwise_conv(x, jnp.tile(kernel[:, :, 0], heads), jnp.tile(bias, heads))
