"""Linformer (Wang et al., 2020, arXiv 2006.04768): softmax attention to a few learned mixtures of the keys."""

from collections.abc import Mapping
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from flatten_jax.attention.contract import Attention, Origin, Site, Sized, heads
from flatten_jax.attention.core import wide
from flatten_jax.attention.softmax import softmax_attention


class Linformer(Attention):
    """softmax(q (E^T k)^T / sqrt(d)) (F^T v) per head: `linformer_k` mixtures of keys and of values for all heads.

    Parameters: `proj_k` E and `proj_v` F, (prefix + M, r), whose rows belong to the keys' tokens, a class token's
    first. At another image size they are resampled on the grid and divided by how many more rows there are, so that
    sums keep their size; the official code takes the first rows for fewer tokens.

    Attributes:
        linformer_k: r, the number of mixtures (the official code's `k`).
        share_kv: v is k, and F is E.
        one_kv_head: all heads share one head of keys and values.
    """

    origin: ClassVar[Origin] = Origin(
        paper="Wang et al., 2020",
        arxiv="2006.04768",
        code="lucidrains/linformer@970e1c3",
        licence="MIT",
        formula="softmax(q (E^T k)^T / sqrt(d)) (F^T v), E and F learned, r mixtures of tokens",
    )
    stream_bias: ClassVar[bool] = False
    original: ClassVar[Mapping[str, str]] = {"q": "to_q", "k": "to_k", "v": "to_v", "proj": "to_out"}
    sized: ClassVar[Mapping[str, Sized]] = {"proj_k": Sized(0, summed=True), "proj_v": Sized(0, summed=True)}

    linformer_k: int = 64
    share_kv: bool = False
    one_kv_head: bool = False

    def widths(self, channels: int) -> Mapping[str, int]:
        keys = channels // self.num_heads if self.one_kv_head else channels
        return {"q": channels, "k": keys, "v": 0 if self.share_kv else keys}

    @nn.compact
    def __call__(self, x: jax.Array, site: Site, q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        shape = (k.shape[1], self.linformer_k)
        bound = self.linformer_k**-0.5

        def initial(key: jax.Array, shape: tuple[int, int]) -> jax.Array:
            return jax.random.uniform(key, shape, minval=-bound, maxval=bound)

        v = k if self.share_kv else v
        of_keys = self.param("proj_k", initial, shape)
        of_values = of_keys if self.share_kv else self.param("proj_v", initial, shape)
        k, v = (mixtures(a, e) for a, e in ((k, of_keys), (v, of_values)))
        d = q.shape[2] // self.num_heads
        q, k, v = (heads(a, a.shape[2] // d) for a in (q, k, v))
        k, v = (jnp.broadcast_to(a, (*a.shape[:2], *q.shape[2:])) for a in (k, v))
        return softmax_attention(q, k, v).reshape(q.shape[0], -1, self.num_heads * d)


def mixtures(x: jax.Array, weights: jax.Array) -> jax.Array:
    """weights^T x: (B, M, C), (M, r) -> (B, r, C), summed in float32 and returned in the dtype of x."""
    return jnp.einsum("bmc,mr->brc", wide(x), weights).astype(x.dtype)
