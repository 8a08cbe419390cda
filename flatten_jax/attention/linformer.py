"""Linformer (Wang et al., 2020, arXiv 2006.04768): softmax attention to k learned sums of the keys."""

from collections.abc import Mapping
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from flatten_jax.attention.contract import Attention, Origin, Site, Sized, heads
from flatten_jax.attention.core import wide
from flatten_jax.attention.softmax import softmax_attention
from flatten_jax.ops.initializers import torch_conv_bias


class Linformer(Attention):
    """softmax(q (E^T k)^T / sqrt(d)) F^T v per head, with E and F the same for all heads.

    Parameters: `proj_k` (E) and `proj_v` (F), a row for every key. Rows of class tokens come first. At another image
    size the others are resampled on the grid, and divided by how many more there are, so that sums keep their size.

    Attributes:
        k: the number of columns of E and F; the original's default is 256.
        share_kv: whether the values are the keys, and F is E.
        one_kv_head: whether all heads share keys and values of one head's width. Not in two branches of stripes.
    """

    origin: ClassVar[Origin] = Origin(
        paper="Wang et al., 2020",
        arxiv="2006.04768",
        code="lucidrains/linformer@970e1c3",
        licence="MIT",
        formula="softmax(q (E^T k)^T / sqrt(d)) F^T v, E and F (tokens x k) learned",
    )
    stream_bias: ClassVar[bool] = False
    sized: ClassVar[Mapping[str, Sized]] = {name: Sized(axis=0, summed=True) for name in ("proj_k", "proj_v")}
    original: ClassVar[Mapping[str, str]] = {"q": "to_q", "k": "to_k", "v": "to_v", "proj": "to_out"}

    k: int = 64
    share_kv: bool = False
    one_kv_head: bool = False

    def __post_init__(self) -> None:
        if self.share_kv:  # no stream for the values
            object.__setattr__(self, "streams", "qk")
        super().__post_init__()

    def widths(self, channels: int) -> Mapping[str, int]:
        """Channels of each stream, for x of `channels`."""
        of_keys = channels // self.num_heads if self.one_kv_head else channels
        return {letter: channels if letter == "q" else of_keys for letter in self.streams}

    @nn.compact
    def __call__(self, x: jax.Array, site: Site, q: jax.Array, k: jax.Array, v: jax.Array | None = None) -> jax.Array:
        if self.k < 1:
            raise ValueError(f"k={self.k} must be at least 1")
        width = q.shape[2] // self.num_heads
        if k.shape[2] % width:
            raise ValueError("one_kv_head=True has no halves for two branches of stripes: take one_kv_head=False there")

        def summed(name: str, x: jax.Array) -> jax.Array:
            matrix = self.param(name, torch_conv_bias(self.k), (x.shape[1], self.k))
            # Sums over all tokens: in bfloat16 they alone would bring the gradient near a relative error of 1e-2.
            return heads(jnp.einsum("bmc,mr->brc", wide(x), matrix).astype(x.dtype), x.shape[2] // width)

        keys = summed("proj_k", k)
        values = keys if v is None else summed("proj_v", v)
        return softmax_attention(heads(q, self.num_heads), keys, values).reshape(q.shape)
