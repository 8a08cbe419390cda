"""Focused linear attention (Han et al., ICCV 2023, arXiv 2308.00442): the map, and the attention made of it."""

from collections.abc import Callable, Mapping
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from flatten_jax.attention import core
from flatten_jax.attention.contract import Attention, Origin, Site, Sized, heads, on_grid
from flatten_jax.attention.core import linear_attention
from flatten_jax.ops.cpu import sum_over_channels, sum_over_tokens
from flatten_jax.ops.depthwise import DepthwiseConv
from flatten_jax.ops.derivative import with_backward
from flatten_jax.ops.gpu import not_shared
from flatten_jax.ops.platform import kernel_mesh, with_tpu_kernel

EPSILON = 1e-6  # the release's, both in the map and in the normaliser
_EPSILONS = EPSILON, core.EPSILON


def focused_map(x: jax.Array, focusing_factor: float = 3.0, scale: jax.Array | None = None) -> jax.Array:
    """phi_p(x) = f_p(ReLU(x)), f_p(x) = |x| / |x^p| * x^p: pulls each vector to its nearest axis, keeping its length.

    This is eq. 6 of the paper. The release adds 1e-6 after the ReLU, and a division by softplus(scale). The power and
    both norms are taken in float32 over the last axis. Vectors are first scaled to length 1, or for large p to a
    largest entry of 1. That does not change f_p, and no power can overflow or underflow to 0 / 0. The derivative keeps
    x alone (`_map_backward`).

    Args:
        x: (..., C), any floating dtype. In the models C is all channels, *before* the heads are split.
        focusing_factor: p >= 1; 1 gives plain ReLU features.
        scale: C raw parameters of the softplus, in any shape, or None for no division.

    Returns:
        (..., C) in float32, or float64 for float64. In half precision a focused vector may exceed the range.
    """
    if focusing_factor < 1:
        raise ValueError(f"{focusing_factor=} must be at least 1 (1 is the plain ReLU map, the paper uses 3)")
    return _map(x, scale, focusing_factor)


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


_map = with_backward(_map, _map_forward, _map_backward, nondiff_argnums=(2,))


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


def focused_attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    scale: jax.Array,
    num_heads: int,
    focusing_factor: float = 3.0,
    dtype: jnp.dtype | None = None,
) -> jax.Array:
    """phi_p(Q) (phi_p(K)^T V), row-normalised per head: eq. 12 without its local branch.

    On TPUs it is one kernel (`focused_kernel`) within `ops.platform.tpu_kernels`, where that is for these sizes.

    Args:
        q, k, v: (B, N, C), (B, M, C), (B, M, C).
        scale: C raw parameters of the map's softplus.
        dtype: of the matrix products and the result (default: v's).

    Returns:
        (B, N, C).
    """
    if (mesh := kernel_mesh()) is not None:
        from flatten_jax.attention import focused_kernel  # Pallas takes a while to import

        if dtype in (None, v.dtype) and focused_kernel.takes(q, k, v, num_heads, focusing_factor, mesh):
            return _by_kernel(q, k, v, scale, num_heads, int(focusing_factor), mesh)
    return _plain(q, k, v, scale, num_heads, focusing_factor, dtype)


def _plain(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    scale: jax.Array,
    num_heads: int,
    p: float,
    dtype: jnp.dtype | None = None,
) -> jax.Array:
    q, k = (focused_map(x, p, scale) for x in (q, k))
    return linear_attention(*(heads(x, num_heads) for x in (q, k, v)), dtype=dtype).reshape(q.shape)


def _forward(
    q: jax.Array, k: jax.Array, v: jax.Array, scale: jax.Array, num_heads: int, p: int, mesh: Mesh
) -> jax.Array:
    from flatten_jax.attention import focused_kernel

    return focused_kernel.forward(q, k, v, _inverse(scale), num_heads, p, _EPSILONS, mesh)


def _backward(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    scale: jax.Array,
    gradient: jax.Array,
    num_heads: int,
    p: int,
    mesh: Mesh,
) -> tuple[jax.Array, ...]:
    from flatten_jax.attention import focused_kernel

    inverse, pull = jax.vjp(_inverse, scale)
    *of_streams, of_inverse = focused_kernel.backward(q, k, v, inverse, gradient, num_heads, p, _EPSILONS, mesh)
    return *of_streams, *pull(of_inverse)


_by_kernel = with_tpu_kernel(_plain, _forward, _backward, arrays=4, facts=3)


class Focused(Attention):
    """O = phi_p(Q) phi_p(K)^T V, row-normalised, + DWC(V) (paper, eq. 12).

    Parameters (the release's names): `scale` (1, 1, C), `positional_encoding` (1, M, C), added to the keys, both zero
    at first, and `dwc`, a depthwise convolution on V with one kernel (k, k, 1, d) for all heads.

    Attributes:
        focusing_factor: p.
        kernel_size: k of the depthwise convolution, odd.
        use_dwc, use_positional_encoding: the paper's ablation; both off and p = 1 is vanilla linear attention.
    """

    origin: ClassVar[Origin] = Origin(
        paper="Han et al., ICCV 2023",
        arxiv="2308.00442",
        code="LeapLabTHU/FLatten-Transformer@abdb115",
        licence="none",
        formula="phi(q) (phi(k)^T v) / (phi(q) . sum phi(k)) + dwc(v), phi(x) = |x| x^p / |x^p|, x = relu(x)",
    )
    takes_prefix: ClassVar[bool] = False
    streams_apart: ClassVar[bool] = True
    sized: ClassVar[Mapping[str, Sized]] = {"positional_encoding": Sized(axis=1)}

    focusing_factor: float = 3.0
    kernel_size: int = 5
    use_dwc: bool = True
    use_positional_encoding: bool = True

    @nn.compact
    def __call__(self, x: jax.Array, site: Site, q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        if self.use_positional_encoding:
            k = k + self.param("positional_encoding", nn.initializers.zeros, (1, *k.shape[1:])).astype(k.dtype)
        scale = self.param("scale", nn.initializers.zeros, (1, 1, q.shape[2]))
        out = focused_attention(q, k, v, scale, self.num_heads, self.focusing_factor, self.dtype)
        return out + self.local_branch(v, site) if self.use_dwc else out

    def local_branch(self, v: jax.Array, site: Site) -> jax.Array:
        """DWC(V) on the queries' grid, to which reduced values are stretched."""
        if site.keys != site.grid:
            v = stretch_tokens(v, site.grid[0] * site.grid[1])
        dwc = DepthwiseConv(v.shape[2] // self.num_heads, self.kernel_size, self.dtype, self.conv_init, name="dwc")
        return dwc(on_grid(v, site)).reshape(v.shape)


def stretch_tokens(v: jax.Array, tokens: int) -> jax.Array:
    """Linear interpolation of (B, M, C) to (B, tokens, C) along the *flattened* token axis, half-pixel centres.

    What the release does with spatially reduced values before the depthwise branch (F.interpolate, mode="linear").
    """
    return jax.image.resize(v, (v.shape[0], tokens, v.shape[2]), "linear", antialias=False)
