"""TaylorShift (Nauen et al., ICPR 2024, arXiv 2403.02920): softmax's Taylor expansion to the second order, exactly."""

from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from flatten_jax.attention.contract import Attention, Origin, Site, heads
from flatten_jax.attention.core import linear_attention, unit, wide


def direct_attention(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    """Weights s^2 / 2 + s + 1 with s = q . k, normalised over the keys, times v: O(N M d).

    Args:
        q: (B, N, h, d), of small length.
        k: (B, M, h, d) likewise.
        v: (B, M, h, e).

    Returns:
        (B, N, h, e). The weights are positive, 1/2 at least.
    """
    scores = jnp.einsum("bnhd,bmhd->bhnm", wide(q), wide(k))
    weights = scores * scores / 2 + scores + 1
    weights = weights / weights.sum(axis=-1, keepdims=True)
    return jnp.einsum("bhnm,bmhe->bnhe", weights.astype(v.dtype), v)


def efficient_attention(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    """The same by features of d^2 + d + 1 channels, q . k and (q . k)^2 / 2 among their products: O(N d^3)."""

    def features(x: jax.Array) -> jax.Array:
        x = wide(x)
        squares = (x[..., :, None] * x[..., None, :]).reshape(*x.shape[:-1], -1) * 0.5**0.5
        return jnp.concatenate([squares, x, jnp.ones_like(x[..., :1])], axis=-1)

    return linear_attention(features(q), features(k), v, v.dtype, epsilon=0.0)


class TaylorShift(Attention):
    """`efficient_attention` above d^2 + d + 1 keys and `direct_attention` below, of directions q / |q| and k / |k|.

    Both orders give one result; the cost is linear in the tokens from there on (4,161 keys for d = 64, 273 for 16).
    Parameter: `temperature` (1, h, 1, 1), ones at first, which multiplies the queries.
    """

    origin: ClassVar[Origin] = Origin(
        paper="Nauen et al., ICPR 2024",
        arxiv="2403.02920",
        code="tobna/TaylorShift@b290faa",
        licence="MIT",
        formula="sum w_ij v_j / sum w_ij, w = s^2 / 2 + s + 1, s = t (q / |q|) . (k / |k|)",
    )

    @nn.compact
    def __call__(self, x: jax.Array, site: Site, q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        temperature = self.param("temperature", nn.initializers.ones, (1, self.num_heads, 1, 1))
        q, k, v_ = (heads(a, self.num_heads) for a in (q, k, v))
        d = q.shape[-1]
        attend = efficient_attention if k.shape[1] > d * d + d + 1 else direct_attention
        return attend(unit(q) * temperature[0, :, 0], unit(k), v_).reshape(q.shape[0], -1, v.shape[2])
