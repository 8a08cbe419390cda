"""The forms that XLA's CPU compiler computes fast: a reader of the mathematics need not enter.

Each stands behind `platform_dependent` in the file of its operation, whose plain form says what is computed.
What each gains: docs/notes_speed.md.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.experimental.xla_metadata import set_xla_metadata

from flatten_jax.ops.derivative import with_backward
from flatten_jax.ops.platform import platform_dependent


def apart(function: Callable) -> Callable:
    """`function` of arrays, compiled by itself: its arguments and results are arrays in memory, fused with nothing.

    XLA's CPU compiler fuses an operation into everything that reads it, and computes it there again: a chain of
    residual gradients once for every block below. It also fuses what it then finds no vector instructions for.
    `jax.lax.optimization_barrier` does not help, XLA removes it before it fuses. What does is a call that may not be
    inlined, which differentiation, sharding and loops pass through.

    For the CPU's branch of `platform_dependent`; GPUs and TPUs fuse well.
    """
    compiled = jax.jit(function)

    @functools.wraps(function)
    def call(*args):
        with set_xla_metadata(inlineable="false"):
            return compiled(*args)

    return call


def sum_over_tokens(x: jax.Array, dtype: jnp.dtype | None = None) -> jax.Array:
    """(..., C) -> (C,), summed in `dtype` (default: that of x). On the CPU a product with ones, six times as fast."""
    dtype = x.dtype if dtype is None else dtype

    def product(x: jax.Array) -> jax.Array:
        return jnp.matmul(jnp.ones((1, len(x)), x.dtype), x, preferred_element_type=dtype)[0]

    def plain(x: jax.Array) -> jax.Array:
        return jnp.sum(x, axis=0, dtype=dtype)

    return platform_dependent(x.reshape(-1, x.shape[-1]), cpu=product, default=plain)


def sum_over_channels(x: jax.Array, weights: jax.Array | float = 1.0) -> jax.Array:
    """sum_c x_c w_c: (..., C), weights (C,) or one number -> (..., 1). On the CPU a product with the weights."""
    weights = jnp.broadcast_to(jnp.asarray(weights, x.dtype), x.shape[-1:])

    def product(x: jax.Array, weights: jax.Array) -> jax.Array:
        return (x.reshape(-1, len(weights)) @ weights[:, None]).reshape(*x.shape[:-1], 1)

    def plain(x: jax.Array, weights: jax.Array) -> jax.Array:
        return jnp.sum(x * weights, axis=-1, keepdims=True)

    return platform_dependent(x, weights, cpu=product, default=plain)


def gradient_apart(x: jax.Array) -> jax.Array:
    """x, whose gradient is computed once on the CPU, and not again in everything that reads it."""
    return x


@apart
def _same(x: jax.Array) -> jax.Array:
    return x


def _gradient_apart_forward(x: jax.Array) -> tuple[jax.Array, None]:
    return x, None


def _gradient_apart_backward(_: None, gradient: jax.Array) -> tuple[jax.Array]:
    return (platform_dependent(gradient, cpu=_same, default=lambda x: x),)


gradient_apart = with_backward(gradient_apart, _gradient_apart_forward, _gradient_apart_backward)


def transposed_product(x: jax.Array, gradient: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """x^T gradient: (N, I), (N, O) -> (I, O), by transposing the narrower of both factors.

    XLA would transpose the left factor, however wide, and compute in strides whatever precedes it.
    """
    if x.shape[1] <= gradient.shape[1]:
        return jnp.matmul(_transpose(x), gradient, preferred_element_type=dtype)
    return _transpose(jnp.matmul(_transpose(gradient), x, preferred_element_type=dtype))


@apart
def _transpose(x: jax.Array) -> jax.Array:
    return x.T


def patches(x: jax.Array, size: int, stride: int, padding: int) -> jax.Array:
    """(B, height, width, C) -> (B, rows, columns, size * size * C), patches row by row."""
    batch, height, width, channels = x.shape
    rows, columns = ((side + 2 * padding - size) // stride + 1 for side in (height, width))
    if size == stride and not padding:
        x = x[:, : rows * size, : columns * size].reshape(batch, rows, size, columns, size * channels)
        return x.swapaxes(2, 3).reshape(batch, rows, columns, -1)
    x = jnp.pad(x, ((0, 0), (padding, padding + stride), (padding, padding + stride), (0, 0)))
    pixels = [
        x[:, i : i + rows * stride : stride, j : j + columns * stride : stride]
        for i in range(size)
        for j in range(size)
    ]
    return jnp.concatenate(pixels, axis=-1)


def shifted_gradients(x: jax.Array, kernel: jax.Array, gradient: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Of x: the same sum with the kernel turned. Of the kernel: see `_kernel_gradient`."""
    of_kernel = _kernel_gradient(x, gradient, kernel.shape[0]).astype(kernel.dtype)
    return shifted_sum(gradient, kernel[::-1, ::-1], None), of_kernel


def shifted_sum(x: jax.Array, kernel: jax.Array, bias: jax.Array | None) -> jax.Array:
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
