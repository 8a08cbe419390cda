"""Multi-head linear attention whose blocks of tokens have states of their own, mixed (ICLR 2026, arXiv 2601.07832)."""

from collections.abc import Mapping
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from flatten_jax.attention.contract import Attention, Grid, Origin, Site, Sized
from flatten_jax.attention.core import EPSILON, wide
from flatten_jax.ops.dense import Dense
from flatten_jax.ops.depthwise import DepthwiseConv
from flatten_jax.ops.norm import LayerNorm
from flatten_jax.ops.rms_norm import RMSNorm

TRANSFORMS = ("cos", "linear", "exp", "local", "gaussian")
NORMALIZERS = ("code", "paper")


def block_mixed_attention(
    q: jax.Array, k: jax.Array, v: jax.Array, mixing: jax.Array, normalizer: str = "code"
) -> jax.Array:
    """q_m (sum_n P_mn k_n^T v_n) / (z_m + epsilon): linear attention with a state for each block of tokens.

    "paper": z_m = q_m . sum_n P_mn s_n, with s_n the sum of the keys of a block, so that the weights of a query sum to
    1. "code": z_m[t] = sum_n P_mn (q_n[t] . s_n), by the queries at the same place t of other blocks.

    Args:
        q, k: (B, b, t, h, d) non-negative, b blocks of t tokens.
        v: (B, b, t, h, e).
        mixing: P, (b, b).

    Returns:
        (B, b, t, h, e) in the dtype of v; the sums over tokens are means inside.
    """
    dtype, tokens = v.dtype, q.shape[2]
    compute = jnp.promote_types(dtype, jnp.float32) if dtype == jnp.float16 else dtype
    mixing, sums = wide(mixing), wide(k).mean(axis=2)
    if normalizer == "paper":
        z = jnp.einsum("bmthd,bmhd->bmth", wide(q), jnp.einsum("mn,bnhd->bmhd", mixing, sums))
    else:
        z = jnp.einsum("mn,bnth->bmth", mixing, jnp.einsum("bnthd,bnhd->bnth", wide(q), sums))
    share = tokens**-0.5  # on either side: within the range of half precision
    states = jnp.einsum("bnthd,bnthe->bnhde", *((wide(a) * share).astype(compute) for a in (k, v)))
    states = jnp.einsum("mn,bnhde->bmhde", mixing, wide(states)).astype(compute)
    out = jnp.einsum("bmthd,bmhde->bmthe", q.astype(compute), states)
    return (wide(out) / (z + EPSILON / tokens)[..., None]).astype(dtype)


def to_blocks(x: jax.Array, grid: Grid, side: int) -> jax.Array:
    """(B, N, C) row by row -> (B, b, side^2, C), blocks row by row and within them likewise."""
    x = x.reshape(x.shape[0], grid[0] // side, side, grid[1] // side, side, -1).swapaxes(2, 3)
    return x.reshape(x.shape[0], -1, side * side, x.shape[-1])


def from_blocks(x: jax.Array, grid: Grid, side: int) -> jax.Array:
    """The inverse of `to_blocks`."""
    x = x.reshape(x.shape[0], grid[0] // side, grid[1] // side, side, side, -1).swapaxes(2, 3)
    return x.reshape(x.shape[0], -1, x.shape[-1])


def initial_mixing(blocks: Grid, transform: str) -> np.ndarray:
    """(b, b) by the distance D of block centres: "cos" cos(D / max D pi / 4), "linear" 1 - D / max D, "exp"
    exp(-D / 3), "local" D <= 1.5, each with columns that sum to 1; "gaussian" exp(-(3 D / max D)^2 / 2).
    """
    places = np.stack(np.indices(blocks), axis=-1).reshape(-1, 2)
    distance = np.linalg.norm(places[:, None] - places, axis=-1)
    share = distance / max(distance.max(), 1)
    if transform == "gaussian":
        return np.exp(-((3 * share) ** 2) / 2)
    of = {
        "cos": np.cos(share * np.pi / 4),
        "linear": 1 - share,
        "exp": np.exp(-distance / 3),
        "local": (distance <= 1.5).astype(float),
    }[transform]
    return of / of.sum(axis=0)


class MHLA(Attention):
    """`block_mixed_attention` of square blocks, + a 5 x 5 depthwise convolution of v on the grid (`lepe`).

    It norms its input itself (`norm`), and q, k = relu + 1e-6. The mixing P, `piece_attn` (b, b, 1, 1), is trained and
    belongs to the number of blocks. Layers: `to_qkv`, `to_out`. The official class takes tokens block by block; here
    they come row by row, and grids need not be square.

    Attributes:
        block_side: side of a block in tokens, a divisor of both sides of the grid; 0: the largest one up to 7.
        transform: initial P by distance, "cos", "linear" (MHLA-DeiT), "exp", "local" or "gaussian".
        normalizer: "code", or "paper", the one that makes rows sum to 1.
        qk_norm: q and k pass an RMS norm over C before the relu (MHLA-DeiT; `q_norm`, `k_norm`).
        qkv_bias: whether `to_qkv` has a bias.
    """

    origin: ClassVar[Origin] = Origin(
        paper="MHLA, ICLR 2026",
        arxiv="2601.07832",
        code="DAGroup-PKU/MHLA@ccf97b2",
        licence="MIT",
        formula="q_m (sum_n P_mn k_n^T v_n) / z_m + dwconv5x5(v), blocks m, n",
    )
    streams: ClassVar[str] = ""
    takes_prefix: ClassVar[bool] = False
    takes_reduced: ClassVar[bool] = False
    takes_windows: ClassVar[bool] = False
    linear_cost: ClassVar[bool] = False  # blocks of one size grow in number, and mix in pairs
    sized: ClassVar[Mapping[str, Sized]] = {"piece_attn": Sized(axis=0, along="fixed", of="queries")}
    original: ClassVar[Mapping[str, str]] = {"piece_attn": "piece_attn.conv.weight", "to_out": "to_out.0"}

    block_side: int = 0
    transform: str = "cos"
    normalizer: str = "code"
    qk_norm: bool = False
    qkv_bias: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, site: Site) -> jax.Array:
        if self.transform not in TRANSFORMS:
            raise ValueError(f"transform={self.transform!r} must be one of {', '.join(TRANSFORMS)}")
        if self.normalizer not in NORMALIZERS:
            raise ValueError(f"normalizer={self.normalizer!r} must be one of {', '.join(NORMALIZERS)}")
        grid, channels, side = site.grid, x.shape[2], self.block_side
        side = side or max(s for s in range(1, 8) if grid[0] % s == grid[1] % s == 0)
        if side < 1 or grid[0] % side or grid[1] % side:
            raise ValueError(
                f"block_side={side} must divide the sides of {grid=}: choose another, or 0 for one that does"
            )

        x = LayerNorm(epsilon=1e-5, dtype=self.dtype, name="norm")(x)
        x = Dense(3 * channels, use_bias=self.qkv_bias, dtype=self.dtype, name="to_qkv")(x)
        q, k, v = jnp.split(x, 3, axis=-1)
        local = DepthwiseConv(channels, 5, self.dtype, self.conv_init, name="lepe")(v.reshape(-1, *grid, channels))
        if self.qk_norm:
            q, k = RMSNorm(2.0**-23, name="q_norm")(q), RMSNorm(2.0**-23, name="k_norm")(k)
        q, k = (jax.nn.relu(wide(a)) + 1e-6 for a in (q, k))

        blocks = (grid[0] // side, grid[1] // side)
        start = initial_mixing(blocks, self.transform)[:, :, None, None]
        mixing = self.param("piece_attn", lambda _, shape: jnp.asarray(start, jnp.float32).reshape(shape), start.shape)
        q, k, v_ = (to_blocks(a, grid, side) for a in (q, k, v))
        q, k, v_ = (a.reshape(*a.shape[:3], self.num_heads, -1) for a in (q, k, v_))
        out = block_mixed_attention(q, k, v_, mixing[:, :, 0, 0], self.normalizer)
        out = from_blocks(out.reshape(*out.shape[:3], channels), grid, side) + local.reshape(v.shape)
        return Dense(channels, dtype=self.dtype, name="to_out")(out)
