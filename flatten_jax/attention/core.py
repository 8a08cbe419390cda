"""What several mechanisms are made of: normalised products, feature maps, rotary positions, forms on the grid.

Sums over tokens are taken as means throughout: equal after a normaliser (its epsilon divided by the number of keys
likewise), and within the range of half precision.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from flatten_jax.attention.contract import Grid, Site
from flatten_jax.ops.initializers import ConvInit

EPSILON = 1e-6  # in the normaliser


def wide(x: jax.Array) -> jax.Array:
    """x in float32 at least: maps, norms, exponentials and normalisers are computed in it."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def linear_attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    dtype: jnp.dtype | None = None,
    rotated: tuple[jax.Array, jax.Array] | None = None,
    epsilon: float = EPSILON,
) -> jax.Array:
    """Row-normalised q (k^T v) per head, q (k^T v / M) / (q . mean k + epsilon): O(N d^2) instead of O(N M d).

    Args:
        q: (B, N, h, d) non-negative features.
        k: (B, M, h, d) likewise.
        v: (B, M, h, e).
        dtype: of the two matrix products and the result (default: v's). The normaliser is in float32 always. float16
            has not the range for products of activations, so there the whole core is in float32.
        rotated: q and k for the products where they are not those of the normaliser (rotary positions).
        epsilon: beside the mean; that of an original which has it beside the sum is divided by M.

    Returns:
        (B, N, h, e).
    """
    dtype = jnp.dtype(dtype or v.dtype)
    compute = jnp.promote_types(dtype, jnp.float32) if dtype == jnp.float16 else dtype
    wide = jnp.promote_types(compute, jnp.float32)
    # Heads before tokens, by what makes q, k and v: the products then need no transposition of their own.
    q, k, v = (x.swapaxes(1, 2).astype(compute) for x in (q, k, v))

    # Means instead of sums: the release's numerics of May 2024.
    mean = k.mean(axis=2, dtype=wide)
    z = 1 / (jnp.einsum("bhnd,bhd->bhn", q.astype(wide), mean) + epsilon)[..., None]
    if rotated is not None:
        q, k = (x.swapaxes(1, 2).astype(compute) for x in rotated)
    out = jnp.einsum("bhnd,bhde->bhne", q, jnp.einsum("bhmd,bhme->bhde", k, v))
    return (out * (z / k.shape[2])).astype(dtype).swapaxes(1, 2)


def row_normalised(q: jax.Array, k: jax.Array, epsilon: float = EPSILON) -> jax.Array:
    """The rows of `linear_attention`, q k^T / (its sum over keys + epsilon), in float32 at least.

    Args:
        q: (B, N, h, d) non-negative features.
        k: (B, M, h, d) likewise.
        epsilon: beside the sum.

    Returns:
        (B, h, N, M).
    """
    products = jnp.einsum("bnhd,bmhd->bhnm", wide(q), wide(k))
    return products / (products.sum(axis=-1, keepdims=True) + epsilon)


def centred_attention(q: jax.Array, k: jax.Array, v: jax.Array, scale: float) -> jax.Array:
    """mean v + scale q (k - mean k)^T (v - mean v) / M: the core of InLine and of Taylor attention, never singular.

    The scores scale q_i . k_j + 1 - scale q_i . mean k of InLine's eq. 5 come to this. In half precision theirs lose
    the digits that all tokens share.

    Args:
        q: (B, N, h, d).
        k: (B, M, h, d).
        v: (B, M, h, e).
        scale: of the scores, d^-1/2.

    Returns:
        (B, N, h, e).
    """
    dtype, share = v.dtype, k.shape[1] ** -0.5
    k, v = wide(k), wide(v)
    mean = v.mean(axis=1, keepdims=True)
    keys, values = ((x * share).astype(dtype) for x in (k - k.mean(axis=1, keepdims=True), v - mean))
    context = jnp.einsum("bmhd,bmhe->bhde", keys, values)
    moved = jnp.einsum("bnhd,bhde->bnhe", (wide(q) * scale).astype(dtype), context)
    return (moved + mean).astype(dtype)


def kept(k: jax.Array, site: Site) -> jax.Array:
    """Features of keys (B, M, h, d), zero for tokens that `site.mask` leaves out."""
    return k if site.mask is None else jnp.where(site.mask[:, :, None, None], k, 0)


def elu1(x: jax.Array) -> jax.Array:
    """elu(x) + 1 in float32 at least, without the cancellation for negative x."""
    x = wide(x)
    return jnp.where(x > 0, x + 1, jnp.exp(jnp.minimum(x, 0)))


def unit(x: jax.Array, axis: int = -1, floor: float = 0.0) -> jax.Array:
    """x / max(|x|, floor) along an axis, in float32 at least; 0 with gradient 0 where x is 0."""
    x = wide(x)
    squares = (x * x).sum(axis=axis, keepdims=True)
    positive = squares > 0
    length = jnp.sqrt(jnp.where(positive, squares, 1))
    return x * jnp.where(positive, 1 / jnp.maximum(length, floor), 0)


def rotate(x: jax.Array, site: Site, theta: np.ndarray, grid: Grid | None = None) -> jax.Array:
    """Rotary positions of a grid: pairs of neighbouring channels turn by position times theta.

    Args:
        x: (B, prefix + N, ..., C) with C = 4 len(theta). The first half turns with the row, the second with the column;
            tokens of the prefix do not turn.
        theta: an angle for each pair of a half, in radians a row or column.
        grid: of the tokens (default: the queries').
    """
    rows, columns = (axis.reshape(-1, 1) * theta for axis in np.indices(grid or site.grid))
    angle = np.repeat(np.concatenate([rows, columns], axis=1), 2, axis=1)
    angle = np.pad(angle, ((site.prefix, 0), (0, 0)))
    angle = angle.reshape(angle.shape[0], *[1] * (x.ndim - 3), angle.shape[1])
    turned = jnp.stack([-x[..., 1::2], x[..., ::2]], axis=-1).reshape(x.shape)
    return x * np.cos(angle).astype(x.dtype) + turned * np.sin(angle).astype(x.dtype)


def values_on_grid(v: jax.Array, site: Site) -> jax.Array:
    """(B, prefix + M, C) -> (B, height, width, C) on the queries' grid, for a branch of v that is local.

    Values on a coarser grid are interpolated in two dimensions, half-pixel centres, as Agent attention does; tokens of
    the prefix are left out.
    """
    v = v[:, site.prefix :].reshape(v.shape[0], *site.keys, v.shape[2])
    return v if site.keys == site.grid else resize(v, site.grid)


def resize(x: jax.Array, size: Grid) -> jax.Array:
    """(B, height, width, C) -> (B, *size, C): bilinear, half-pixel centres, no antialiasing."""
    return jax.image.resize(x, (x.shape[0], *size, x.shape[3]), "linear", antialias=False)


@jax.jit
def dynamic_depthwise(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Depthwise convolution with a kernel of its own for every example: (B, height, width, C), (B, k, k, C)."""
    size, (height, width) = kernel.shape[1], x.shape[1:3]
    margin = size // 2
    padded = jnp.pad(x, ((0, 0), (margin, margin), (margin, margin), (0, 0)))
    return sum(
        padded[:, i : i + height, j : j + width] * kernel[:, i, j][:, None, None]
        for i in range(size)
        for j in range(size)
    )


def adaptive_pool(x: jax.Array, size: Grid) -> jax.Array:
    """(B, height, width, C) -> (B, *size, C): means of PyTorch's bins, which overlap where sides do not divide."""
    rows, columns = (_bins(*sides) for sides in zip(x.shape[1:3], size, strict=True))
    return _pool(x, rows, columns)


@jax.jit
def _pool(x: jax.Array, rows: jax.Array, columns: jax.Array) -> jax.Array:
    return jnp.einsum("ih,jw,bhwc->bijc", rows.astype(x.dtype), columns.astype(x.dtype), x)


def _bins(side: int, count: int) -> np.ndarray:
    """(count, side) shares."""
    low, high = np.arange(count) * side // count, -(-(np.arange(count) + 1) * side // count)
    inside = (np.arange(side) >= low[:, None]) & (np.arange(side) < high[:, None])
    return (inside / (high - low)[:, None]).astype(np.float32)


def unnormalised(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    """q (k^T v / M) per head: linear attention without its normaliser.

    Args:
        q: (B, N, h, d) features.
        k: (B, M, h, d) likewise.
        v: (B, M, h, e), whose dtype is that of the two matrix products; float16 has not the range for them.

    Returns:
        (B, N, h, e) in float32 at least.
    """
    dtype = jnp.promote_types(v.dtype, jnp.float32)
    share = k.shape[1] ** -0.5  # on either side of the product, for the range of half precision
    k, v = wide(k) * share, wide(v) * share if v.dtype == jnp.float16 else v * jnp.asarray(share, v.dtype)
    q, k, v = (x.swapaxes(1, 2).astype(v.dtype) for x in (q, k, v))
    context = jnp.einsum("bhmd,bhme->bhde", k, v)
    return jnp.einsum("bhnd,bhde->bhne", q, context).swapaxes(1, 2).astype(dtype)


def clamped_attention(q: jax.Array, k: jax.Array, v: jax.Array, low: float) -> jax.Array:
    """q (k^T v) / max(q . sum k, low) per head, by means over keys: `low` is beside the sum.

    Args:
        q, k, v: those of `unnormalised`, q and k non-negative.

    Returns:
        (B, N, h, e) in float32 at least.
    """
    q, k = (x.astype(v.dtype) for x in (q, k))  # the same rounding above and below the line
    z = jnp.einsum("bnhd,bhd->bnh", wide(q), wide(k).mean(axis=1))[..., None]
    return unnormalised(q, k, v) / jnp.maximum(z, low / k.shape[1])


@jax.jit
def along_sequence(v: jax.Array, kernel: jax.Array) -> jax.Array:
    """Convolution along the flat sequence, zeros around it, with one kernel for all channels of a head.

    Args:
        v: (B, N, h, d).
        kernel: (k, h), k odd.

    Returns:
        (B, N, h, d), summed in float32 and returned in the dtype of v.
    """
    if kernel.shape[0] % 2 == 0:
        raise ValueError(f"{kernel.shape=} must have an odd length: an even one cannot keep the number of tokens")
    margin, tokens = kernel.shape[0] // 2, v.shape[1]
    padded = jnp.pad(wide(v), ((0, 0), (margin, margin), (0, 0), (0, 0)))
    return sum(padded[:, i : i + tokens] * weight[:, None] for i, weight in enumerate(kernel)).astype(v.dtype)


class Kernel(nn.Module):
    """The kernel of a convolution without bias, as an array: its one parameter `kernel`.

    Attributes:
        shape: (height, width, in, out), with in = 1 for a depthwise one.
        conv_init: initial values.
    """

    shape: tuple[int, ...]
    conv_init: ConvInit

    @nn.compact
    def __call__(self) -> jax.Array:
        return self.param("kernel", self.conv_init.kernel, self.shape)
