"""Efficient attention (Shen et al., WACV 2021, arXiv 1812.01243): a softmax of queries and one of keys, apart."""

from collections.abc import Mapping
from typing import ClassVar

import jax
import jax.numpy as jnp

from flatten_jax.attention.contract import Attention, Origin, Site, heads
from flatten_jax.attention.core import wide


def efficient_attention(q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array | None = None) -> jax.Array:
    """softmax(q) (softmax(k)^T v) per head: of q over its d channels, of k over the tokens, both in float32.

    Args:
        q: (B, N, h, d).
        k: (B, M, h, d).
        v: (B, M, h, e).
        mask: (B, M) bool, which keys there are; None: all.

    Returns:
        (B, N, h, e), means of means of v.
    """
    if mask is not None:
        k = jnp.where(mask[:, :, None, None], k, -jnp.inf)
    q, k = (jax.nn.softmax(wide(x), axis=axis).astype(v.dtype) for x, axis in ((q, -1), (k, 1)))
    return jnp.einsum("bnhd,bhde->bnhe", q, jnp.einsum("bmhd,bmhe->bhde", k, v))


class Efficient(Attention):
    """`efficient_attention`; no parameters, no scale.

    The official module adds its input to its result; here blocks do.

    Attributes:
        key_channels: of queries and keys together, divisible by num_heads; 0: C.
        value_channels: of the values likewise.
    """

    origin: ClassVar[Origin] = Origin(
        paper="Shen et al., WACV 2021",
        arxiv="1812.01243",
        code="cmsflash/efficient-attention@46a5f9e",
        licence="MIT",
        formula="softmax_channels(q) (softmax_tokens(k)^T v)",
    )
    original: ClassVar[Mapping[str, str]] = {"q": "queries", "k": "keys", "v": "values", "proj": "reprojection"}
    pointwise: ClassVar[tuple[str, ...]] = ("qkv", "q", "kv", "proj")

    takes_mask: ClassVar[bool] = True

    key_channels: int = 0
    value_channels: int = 0

    def widths(self, channels: int) -> Mapping[str, int]:
        """Channels of each stream, for x of `channels`."""
        keys, values = self.key_channels or channels, self.value_channels or channels
        for option, width in (("key_channels", keys), ("value_channels", values)):
            if width < 1 or width % self.num_heads:
                raise ValueError(f"{option}={width} must be a multiple of num_heads={self.num_heads}, or 0 for C")
        return {"q": keys, "k": keys, "v": values}

    def __call__(self, x: jax.Array, site: Site, q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        q, k, v_ = (heads(a, self.num_heads) for a in (q, k, v))
        return efficient_attention(q, k, v_, site.mask).reshape(x.shape[0], -1, v.shape[2])
