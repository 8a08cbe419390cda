"""Hedgehog (Zhang et al., ICLR 2024, arXiv 2402.04347): learned feature maps that imitate the softmax's."""

from collections.abc import Mapping
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from flatten_jax.attention.contract import Attention, Origin, Site, heads
from flatten_jax.attention.core import linear_attention, row_normalised, wide

EPSILON = 1e-12  # the least value of a feature, and in the normaliser

FEATURE_MAPS = {
    "softmax_dim": jax.nn.softmax,
    "exp_dim": lambda x: jnp.exp(x - x.max(axis=-1, keepdims=True)),
}


def hedgehog_features(
    x: jax.Array,
    weights: jax.Array,
    feature_map: str = "softmax_dim",
    skip_connection: bool = False,
    half_space: bool = False,
) -> jax.Array:
    """max([f(y), f(-y)], 1e-12) with y = x W of the head (+ x), f the softmax or exp(y - max y), in float32 at least.

    Args:
        x: (B, N, h, d).
        weights: W, (h, d, f).
        feature_map: "softmax_dim" or "exp_dim".
        skip_connection: whether x is added; then f = d.
        half_space: without f(-y).

    Returns:
        (B, N, h, 2 f), or (B, N, h, f) of the half space.
    """
    x = wide(x)
    y = jnp.einsum("bnhd,hdf->bnhf", x, weights)
    y = x + y if skip_connection else y
    both = (y,) if half_space else (y, -y)
    return jnp.maximum(jnp.concatenate([FEATURE_MAPS[feature_map](a) for a in both], axis=-1), EPSILON)


class Hedgehog(Attention):
    """Row-normalised phi(q) (phi(k)^T v) with `hedgehog_features` phi, one map for queries and one for keys.

    Parameters: `q_map` and `k_map` (h, d, f). Queries are not scaled by d^-1/2, that is left to the maps. The code is
    LoLCATs', which is causal; here every query sees all keys.

    Attributes:
        feature_dim: f; 0: d.
        skip_connection: whether x is added to x W; then f must be d.
        zero_init: whether W starts as the identity (with `skip_connection` as zero), and not at random.
        feature_map: "softmax_dim" or "exp_dim".
        half_space: whether the features of -x W are left out.
    """

    origin: ClassVar[Origin] = Origin(
        paper="Zhang et al., ICLR 2024",
        arxiv="2402.04347",
        code="HazyResearch/lolcats@375df84",
        licence="Apache-2.0",
        formula="phi(q) (phi(k)^T v) / (phi(q) . sum phi(k)), phi(x) = [softmax(x W), softmax(-x W)], W learned",
    )
    forms_map: ClassVar[bool] = True
    original: ClassVar[Mapping[str, str]] = {"q_map": "q.mlp.layer", "k_map": "k.mlp.layer"}

    feature_dim: int = 0
    skip_connection: bool = False
    zero_init: bool = False
    feature_map: str = "softmax_dim"
    half_space: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, site: Site, q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        if self.feature_map not in FEATURE_MAPS:
            raise ValueError(f"feature_map={self.feature_map!r} must be one of {', '.join(FEATURE_MAPS)}")
        d = v.shape[2] // self.num_heads
        f = self.feature_dim or d
        if f < 1 or (self.skip_connection and f != d):
            raise ValueError(f"feature_dim={f} must be {f'{d} with skip_connection=True' if f > 0 else 'at least 1'}")
        maps = (self.param(name, self.initial, (self.num_heads, d, f)) for name in ("q_map", "k_map"))
        q, k = (
            hedgehog_features(
                heads(a, self.num_heads), weights, self.feature_map, self.skip_connection, self.half_space
            )
            for a, weights in zip((q, k), maps, strict=True)
        )
        of_heads = heads(v, self.num_heads)
        self.show_map(lambda: row_normalised(q, k, EPSILON), of_heads)
        out = linear_attention(q, k, of_heads, self.dtype, epsilon=EPSILON / k.shape[1])
        return out.reshape(x.shape[0], -1, v.shape[2])

    def initial(self, key: jax.Array, shape: tuple[int, int, int], dtype: jnp.dtype = jnp.float32) -> jax.Array:
        """Weights (h, d, f), at random as PyTorch's Kaiming initialiser sees three dimensions."""
        if self.zero_init:
            start = jnp.zeros(shape[1:], dtype) if self.skip_connection else jnp.eye(*shape[1:], dtype=dtype)
            return jnp.broadcast_to(start, shape)
        bound = (6 / (shape[1] * shape[2])) ** 0.5
        return jax.random.uniform(key, shape, dtype, -bound, bound)
