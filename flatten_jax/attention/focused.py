"""Focused linear attention (Han et al., ICCV 2023, arXiv 2308.00442): the map, the core, and the mixer made of them."""

from collections.abc import Callable
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp

from flatten_jax.ops.depthwise import DepthwiseConv
from flatten_jax.ops.initializers import TORCH_CONV, ConvInit
from flatten_jax.ops.cpu import not_shared, sum_over_channels, sum_over_tokens

Grid = tuple[int, int]
EPSILON = 1e-6  # the release's, both in the map and in the normaliser


def focused_map(x: jax.Array, focusing_factor: float = 3.0, scale: jax.Array | None = None) -> jax.Array:
    """phi_p(x) = f_p(ReLU(x)), f_p(x) = |x| / |x^p| * x^p: pulls each vector to its nearest axis, keeping its length.

    Paper, eq. 6, with what the release adds: 1e-6 after the ReLU, and a division by softplus(scale). The power and both
    norms are in float32 over the last axis, on vectors of length 1, or for large p with a largest entry of 1: f_p does
    not notice, and no power can overflow or underflow to 0 / 0. The derivative keeps x alone (`_map_backward`).

    Args:
        x: (..., C), any floating dtype. In the models C is all channels, *before* the heads are split.
        focusing_factor: p >= 1; 1 gives plain ReLU features.
        scale: C raw parameters of the softplus, in any shape, or None for no division.

    Returns:
        (..., C) in float32 (float64 for float64): in half precision a focused vector may exceed the range.
    """
    if focusing_factor < 1:
        raise ValueError(f"{focusing_factor=} must be at least 1 (1 is the plain ReLU map, the paper uses 3)")
    return _map(x, scale, focusing_factor)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _map(x: jax.Array, scale: jax.Array | None, p: float) -> jax.Array:
    x = _positive(x) if scale is None else _positive(x) * _inverse(scale)
    if p == 1:
        return x
    unit, size, factor = _unit(x, p)
    power = _power(unit, p)
    # In this order XLA makes one kernel of it all on GPUs.
    return power * sum_over_channels(power * power) ** -0.5 * (factor * size)


def _map_forward(x: jax.Array, scale: jax.Array | None, p: float) -> tuple[jax.Array, tuple]:
    return _map(x, scale, p), (x, scale)


def _map_backward(p: float, saved: tuple, gradient: jax.Array) -> tuple[jax.Array, jax.Array | None]:
    """With u = y / c: f = c g u^p, g = |u| / |u^p|, so df/dy is p g u^(p-1) on the diagonal, plus u^p dg/du.

    Kept are x and scale alone: autodiff would keep the powers and norms as well, which are quicker to compute again
    than to read.
    """
    x, scale = saved
    x = not_shared(x)
    positive, inverse = _positive(x), 1.0
    if scale is not None:
        inverse, pull = jax.vjp(_inverse, scale)
    if p != 1:
        unit, size, _ = _unit(positive * inverse, p, not_shared)
        below = _power(unit, p - 1)
        power = below * unit
        squares = sum_over_channels(power * power)
        along = sum_over_channels(gradient * power)
        slope = p * below * (gradient - power * (along / squares)) + unit * (along / size**2)
        gradient = slope * (size * squares**-0.5)
    of_x = jnp.where(x > 0, gradient * inverse, 0).astype(x.dtype)
    return of_x, None if scale is None else pull(sum_over_tokens(gradient * positive))[0]


_map.defvjp(_map_forward, _map_backward)


def _positive(x: jax.Array) -> jax.Array:
    return nn.relu(x.astype(jnp.promote_types(x.dtype, jnp.float32))) + EPSILON


def _inverse(scale: jax.Array) -> jax.Array:
    return 1 / nn.softplus(scale.reshape(-1))


def _unit(
    x: jax.Array, p: float, of_norm: Callable[[jax.Array], jax.Array] = lambda norm: norm
) -> tuple[jax.Array, jax.Array | float, jax.Array]:
    """(u, |u|, c) with u = x / c of a size at which its powers and their sums are safe in float32."""
    if x.shape[-1] ** (p - 1) < 1e30:  # for |u| = 1 the sum of u^2p is at least C^(1-p)
        norm = of_norm(sum_over_channels(x * x) ** 0.5)
        return x / norm, 1.0, norm
    peak = of_norm(jnp.max(x, axis=-1, keepdims=True))
    unit = x / peak
    return unit, sum_over_channels(unit * unit) ** 0.5, peak


def _power(x: jax.Array, p: float) -> jax.Array:
    return x ** (int(p) if p == int(p) else p)


def linear_attention(q: jax.Array, k: jax.Array, v: jax.Array, dtype: jnp.dtype | None = None) -> jax.Array:
    """Row-normalised q (k^T v) per head: O(N d^2) instead of O(N M d) (paper, eq. 12, without the local branch).

    Args:
        q: (B, N, h, d) non-negative features, as `focused_map` gives them.
        k: (B, M, h, d) likewise.
        v: (B, M, h, e).
        dtype: of the two matrix products and the result (default: v's). The normaliser is in float32 always; float16
            has not the range for products of activations, there the whole core is in float32.

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
    z = 1 / (jnp.einsum("bhnd,bhd->bhn", q.astype(wide), mean) + EPSILON)[..., None]
    out = jnp.einsum("bhnd,bhde->bhne", q, jnp.einsum("bhmd,bhme->bhde", k, v))
    return (out * (z / k.shape[2])).astype(dtype).swapaxes(1, 2)


class FocusedLinearMixer(nn.Module):
    """O = phi_p(Q) phi_p(K)^T V, row-normalised, + DWC(V) (paper, eq. 12), between the projections of its host.

    Parameters (the release's names): `scale` (1, 1, C), `positional_encoding` (1, M, C), added to the keys, both zero
    at first, and `dwc`, a depthwise convolution on V with one kernel (k, k, 1, d) for all heads.

    Attributes:
        num_heads: h; the head width is d = C / h.
        focusing_factor: p.
        kernel_size: k of the depthwise convolution, odd.
        use_dwc, use_positional_encoding: the paper's ablation: both off and p = 1 is vanilla linear attention.
        dtype: of the matrix products; the map and the normaliser are always in float32.
        conv_init: initial values of `dwc`; the host says which.
    """

    num_heads: int
    focusing_factor: float = 3.0
    kernel_size: int = 5
    use_dwc: bool = True
    use_positional_encoding: bool = True
    dtype: jnp.dtype | None = None
    conv_init: ConvInit = TORCH_CONV

    @nn.compact
    def __call__(self, q: jax.Array, k: jax.Array, v: jax.Array, grid: Grid, key_grid: Grid) -> jax.Array:
        """q: (B, N, C) on `grid`, k and v: (B, M, C) on `key_grid`, both (height, width), row-major -> (B, N, C)."""
        batch, tokens, channels = q.shape
        if channels % self.num_heads:
            raise ValueError(f"{channels=} is not divisible by num_heads={self.num_heads}")
        for name, array, (height, width) in ("q", q, grid), ("k", k, key_grid):
            if array.shape[1] != height * width:
                raise ValueError(
                    f"{name} has {array.shape[1]} tokens, its grid {height} x {width} has {height * width}; "
                    "linear attention with a depthwise branch takes grid tokens only, no class token"
                )
        if self.use_positional_encoding:
            encoding = self.param("positional_encoding", nn.initializers.zeros, (1, k.shape[1], channels))
            k = k + encoding.astype(k.dtype)
        scale = self.param("scale", nn.initializers.zeros, (1, 1, channels))
        q, k = (focused_map(x, self.focusing_factor, scale) for x in (q, k))

        heads = (batch, -1, self.num_heads, channels // self.num_heads)
        out = linear_attention(*(x.reshape(heads) for x in (q, k, v)), dtype=self.dtype).reshape(q.shape)
        if self.use_dwc:
            if key_grid != grid:
                v = stretch_tokens(v, tokens)
            dwc = DepthwiseConv(heads[-1], self.kernel_size, self.dtype, self.conv_init, name="dwc")
            out = out + dwc(v.reshape(batch, *grid, channels)).reshape(q.shape)
        return out


def stretch_tokens(v: jax.Array, tokens: int) -> jax.Array:
    """Linear interpolation of (B, M, C) to (B, tokens, C) along the *flattened* token axis, half-pixel centres.

    What the release does with spatially reduced values before the depthwise branch (F.interpolate, mode="linear").
    """
    return jax.image.resize(v, (v.shape[0], tokens, v.shape[2]), "linear", antialias=False)
