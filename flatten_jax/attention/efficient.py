"""Efficient attention (Shen et al., WACV 2021, arXiv 1812.01243): a softmax of queries, a softmax of keys."""

from collections.abc import Mapping
from typing import ClassVar

import jax
import jax.numpy as jnp

from flatten_jax.attention.contract import Attention, Origin, Site, heads
from flatten_jax.attention.core import wide


def efficient_attention(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    """softmax_d(q) (softmax_tokens(k)^T v) per head (eq. 4).

    Args:
        q: (B, N, h, d); its softmax is over the channels of the head.
        k: (B, M, h, d); its softmax is over the keys, for each channel.
        v: (B, M, h, e).

    Returns:
        (B, N, h, e), convex combinations of the values. Softmaxes and the sum over keys are in float32.
    """
    q, k = jax.nn.softmax(wide(q), axis=-1), jax.nn.softmax(wide(k), axis=1)
    context = jnp.einsum("bmhd,bmhe->bhde", k, wide(v))
    return jnp.einsum("bnhd,bhde->bnhe", q.astype(v.dtype), context.astype(v.dtype))


class Efficient(Attention):
    """`efficient_attention`; no parameters. The original adds its input to the result, which is the block's part here.

    Attributes:
        key_channels, value_channels: widths of queries and keys, and of values, divisible by the heads; 0: that of x.
    """

    origin: ClassVar[Origin] = Origin(
        paper="Shen et al., WACV 2021",
        arxiv="1812.01243",
        code="cmsflash/efficient-attention@46a5f9e",
        licence="MIT",
        formula="softmax_d(q) (softmax_N(k)^T v)",
    )
    original: ClassVar[Mapping[str, str]] = {"q": "queries", "k": "keys", "v": "values", "proj": "reprojection"}
    pointwise: ClassVar[tuple[str, ...]] = ("qkv", "q", "kv", "proj")

    key_channels: int = 0
    value_channels: int = 0

    def widths(self, channels: int) -> Mapping[str, int]:
        keys, values = self.key_channels or channels, self.value_channels or channels
        for name, width in (("key_channels", keys), ("value_channels", values)):
            if width % self.num_heads:
                raise ValueError(f"{name}={width} is not divisible by num_heads={self.num_heads}")
        return {"q": keys, "k": keys, "v": values}

    def __call__(self, x: jax.Array, site: Site, q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        q, k, v_ = (heads(a, self.num_heads) for a in (q, k, v))
        return efficient_attention(q, k, v_).reshape(q.shape[0], -1, v.shape[2])
