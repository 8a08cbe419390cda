"""Hedgehog (Zhang et al., ICLR 2024, arXiv 2402.04347): learned feature maps that mimic softmax's weights."""

from collections.abc import Mapping
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from flatten_jax.attention.contract import Attention, Origin, Site, heads
from flatten_jax.attention.core import linear_attention, wide

LEAST = 1e-12  # of a feature, and beside the normaliser's sum


def hedgehog_map(x: jax.Array, layer: jax.Array, feature_map: str = "softmax_dim", skip: bool = False) -> jax.Array:
    """phi(x) = max([f(y), f(-y)], 1e-12) with y = x W (+ x), in float32.

    Args:
        x: (..., h, d).
        layer: W (h, d, f), a matrix for each head.
        feature_map: "softmax_dim": f a softmax over the features; "exp_dim": f(y) = exp(y - max y);
            "softmax_dim_halfspace": the softmax of y alone.
        skip: add x to y; then f = d.

    Returns:
        (..., h, 2 f), or (..., h, f) of the half space.
    """
    y = jnp.einsum("...hd,hdf->...hf", wide(x), wide(layer))
    y = y + wide(x) if skip else y
    if feature_map == "softmax_dim_halfspace":
        return jnp.maximum(jax.nn.softmax(y), LEAST)
    if feature_map == "softmax_dim":
        both = [jax.nn.softmax(y), jax.nn.softmax(-y)]
    elif feature_map == "exp_dim":
        both = [jnp.exp(y - y.max(axis=-1, keepdims=True)), jnp.exp(y.min(axis=-1, keepdims=True) - y)]
    else:
        raise ValueError(f"{feature_map=} must be softmax_dim, softmax_dim_halfspace or exp_dim")
    return jnp.maximum(jnp.concatenate(both, axis=-1), LEAST)


class Hedgehog(Attention):
    """Row-normalised phi(q) (phi(k)^T v) per head, with a learned `hedgehog_map` for queries and one for keys.

    The scale of softmax, d^-1/2, is left to the maps. The code that it is compared with is causal; here every query
    has all keys. Parameters: `q_map` and `k_map`, each a `layer` (h, d, f).

    Attributes:
        feature_map: "softmax_dim", "softmax_dim_halfspace" or "exp_dim".
        feature_dim: f, before the map doubles it; 0: the width of a head.
        skip_connection: add x to x W.
        zero_init: start as the identity (W = 1, or W = 0 with skip_connection).
    """

    origin: ClassVar[Origin] = Origin(
        paper="Zhang et al., ICLR 2024",
        arxiv="2402.04347",
        code="HazyResearch/lolcats@375df84",
        licence="Apache-2.0",
        formula="phi(q) (phi(k)^T v) / (phi(q) . sum phi(k)), phi(x) = [softmax(x W), softmax(-x W)]",
    )
    original: ClassVar[Mapping[str, str]] = {"q_map": "q.mlp", "k_map": "k.mlp"}

    feature_map: str = "softmax_dim"
    feature_dim: int = 0
    skip_connection: bool = False
    zero_init: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, site: Site, q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        q, k, v_ = (heads(a, self.num_heads) for a in (q, k, v))
        shape = (*q.shape[2:], self.feature_dim or q.shape[3])
        if self.skip_connection and shape[1] != shape[2]:
            raise ValueError(f"skip_connection needs feature_dim={shape[1]}, the width of a head, not {shape[2]}")
        q, k = (
            hedgehog_map(a, _Layer(shape, self._initial, name=name)(), self.feature_map, self.skip_connection)
            for a, name in ((q, "q_map"), (k, "k_map"))
        )
        out = linear_attention(q, k, v_, v.dtype, epsilon=LEAST / k.shape[1])
        return out.reshape(q.shape[0], -1, v.shape[2])

    def _initial(self, key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
        if self.zero_init:
            identity = jnp.broadcast_to(jnp.eye(*shape[1:], dtype=dtype), shape)
            return jnp.zeros(shape, dtype) if self.skip_connection else identity
        bound = (6 / (shape[1] * shape[2])) ** 0.5  # PyTorch's Kaiming uniform, which takes (h, d, f) for a kernel
        return jax.random.uniform(key, shape, dtype, -bound, bound)


class _Layer(nn.Module):
    """The parameter `layer` under a module's name."""

    shape: tuple[int, ...]
    initial: Any

    @nn.compact
    def __call__(self) -> jax.Array:
        return self.param("layer", self.initial, self.shape)
