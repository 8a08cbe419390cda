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


@jax.custom_vjp
def _shifted_sum(x: jax.Array, kernel: jax.Array) -> jax.Array:
    size, (_, height, width, _) = kernel.shape[0], x.shape
    dtype = jnp.promote_types(x.dtype, jnp.float32)

    padded = _pad(x, size // 2)

    def add_row(row: jax.Array, out: jax.Array) -> jax.Array:
        above = jax.lax.dynamic_slice_in_dim(padded, row, size, axis=1)
        terms = (
            above[:, i : i + 1, j : j + width].astype(dtype) * kernel[i, j].astype(dtype)
            for i in range(size)
            for j in range(size)
        )
        return jax.lax.dynamic_update_slice_in_dim(out, sum(terms).astype(x.dtype), row, axis=1)

    # A loop over rows, since XLA would compute the whole sum together with what follows, such as a division into heads,
    # for which it finds no vector instructions: four to ten times slower. Nothing else keeps it apart.
    return jax.lax.fori_loop(0, height, add_row, jnp.zeros_like(x))


def _shifted_sum_forward(x: jax.Array, kernel: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _shifted_sum(x, kernel), (x, kernel)


def _shifted_sum_backward(saved: tuple[jax.Array, jax.Array], gradient: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Of x: the same sum with the kernel turned. Of the kernel: row by row of the grid, which stay in the cache."""
    x, kernel = saved
    size, (_, height, width, _) = kernel.shape[0], x.shape
    dtype = jnp.promote_types(x.dtype, jnp.float32)
    padded, gradient = jax.lax.optimization_barrier((_pad(x, size // 2), gradient))

    def add_row(total: jax.Array, row: jax.Array) -> tuple[jax.Array, None]:
        above = jax.lax.dynamic_slice_in_dim(padded, row, size, axis=1).astype(dtype)
        of_row = jax.lax.dynamic_slice_in_dim(gradient, row, 1, axis=1).astype(dtype)
        terms = [(above[:, :, j : j + width] * of_row).sum(axis=(0, 2)) for j in range(size)]
        return total + jnp.stack(terms, axis=1), None

    of_kernel, _ = jax.lax.scan(add_row, jnp.zeros(kernel.shape, dtype), jnp.arange(height))
    return _shifted_sum(gradient, kernel[::-1, ::-1]), of_kernel.astype(kernel.dtype)


_shifted_sum.defvjp(_shifted_sum_forward, _shifted_sum_backward)


def _pad(x: jax.Array, margin: int) -> jax.Array:
    return jnp.pad(x, ((0, 0), (margin, margin), (margin, margin), (0, 0)))


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
