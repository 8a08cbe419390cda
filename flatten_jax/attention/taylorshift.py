"""TaylorShift (Nauen et al., ICPR 2024, arXiv 2403.02920): softmax's second-order expansion, in two orders."""

from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from flatten_jax.attention.contract import Attention, Origin, Site, heads
from flatten_jax.attention.core import linear_attention, unit, wide


def taylor_quadratic(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    """Weights 1 + s + s^2 / 2 with s = q . k, row-normalised, formed one by one: O(N M d).

    Args:
        q: (B, N, h, d).
        k: (B, M, h, d).
        v: (B, M, h, e).

    Returns:
        (B, N, h, e).
    """
    scores = jnp.einsum("bnhd,bmhd->bhnm", wide(q), wide(k))
    weights = 1 + scores + scores * scores / 2  # at least 1/2
    weights = weights / weights.sum(axis=-1, keepdims=True)
    return jnp.einsum("bhnm,bmhe->bnhe", weights.astype(v.dtype), v)


def taylor_linear(q: jax.Array, k: jax.Array, v: jax.Array, dtype: jnp.dtype | None = None) -> jax.Array:
    """`taylor_quadratic` by features [1, x, x x^T / sqrt(2)], 1 + d + d^2 of them: O((N + M) d^3)."""

    def features(x: jax.Array) -> jax.Array:
        x = wide(x)
        squares = (x[..., :, None] * x[..., None, :] * 0.5**0.5).reshape(*x.shape[:-1], -1)
        return jnp.concatenate([jnp.ones_like(x[..., :1]), x, squares], axis=-1)

    return linear_attention(features(q), features(k), v, dtype, epsilon=0.0)


class TaylorShift(Attention):
    """Weights 1 + s + s^2 / 2, row-normalised, s = t q . k / (|q| |k|) with a learned t for each head, `temperature`.

    `taylor_quadratic` or, with more tokens than d^2 + d + 1, `taylor_linear` computes the same; with fewer keys than
    queries their harmonic mean decides.
    """

    origin: ClassVar[Origin] = Origin(
        paper="Nauen et al., ICPR 2024",
        arxiv="2403.02920",
        code="tobna/TaylorShift@b290faa",
        licence="MIT",
        formula="weights 1 + s + s^2 / 2, row-normalised, s = t q . k / (|q| |k|)",
    )

    @nn.compact
    def __call__(self, x: jax.Array, site: Site, q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        temperature = self.param("temperature", nn.initializers.ones, (1, self.num_heads, 1, 1))
        q, k, v_ = (heads(a, self.num_heads) for a in (q, k, v))
        (queries, keys), d = (q.shape[1], k.shape[1]), q.shape[3]
        q, k = unit(q, floor=1e-12) * temperature[:, :, :, 0], unit(k, floor=1e-12)
        many = 2 * queries * keys / (queries + keys) > d * d + d + 1
        out = taylor_linear(q, k, v_, self.dtype) if many else taylor_quadratic(q, k, v_)
        return out.reshape(x.shape[0], -1, v.shape[2])
