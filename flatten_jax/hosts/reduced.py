"""The host of PVT and PVTv2: keys and values on a coarser grid than the queries."""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from flatten_jax.attention.contract import Site
from flatten_jax.attention.table import make_attention
from flatten_jax.hosts.plain import attend, project
from flatten_jax.ops.convolution import Conv
from flatten_jax.ops.initializers import TORCH_CONV, ConvInit
from flatten_jax.ops.norm import LayerNorm


class ReducedAttention(nn.Module):
    """Keys and values on a grid `sr_ratio` times coarser, by projections of their own: the form of PVT and PVTv2.

    Attributes:
        num_heads: number of heads h, a divisor of C.
        attn_type: name of the attention, one of `flatten_jax.list_attentions()`.
        sr_ratio: r. A strided convolution `sr`, and a LayerNorm `norm`, make one key of each patch of r x r tokens.
        options: the attention's own, such as {"focusing_factor": 3}.
        dtype: of the computation; parameters are float32.
        conv_init: initial values of the convolutions, those of the attention too.
    """

    num_heads: int
    attn_type: str = "focused"
    sr_ratio: int = 1
    options: Mapping[str, Any] = nn.FrozenDict()
    dtype: jnp.dtype | None = None
    conv_init: ConvInit = TORCH_CONV

    @nn.compact
    def __call__(self, x: jax.Array, site: Site) -> jax.Array:
        attention = make_attention(self.attn_type, self.num_heads, self.dtype, self.options, self.conv_init)
        nn.share_scope(self, attention)
        coarse, ratio, grid = x, self.sr_ratio, site.grid
        if ratio > 1:
            if site.prefix:
                raise ValueError("reduced keys have no place for a class token: pool the tokens instead, or sr_ratio=1")
            site = site.replace(key_grid=(grid[0] // ratio, grid[1] // ratio))
            if 0 in site.keys:
                raise ValueError(f"{grid=} is smaller than sr_ratio={ratio}: use a larger image or ratio 1")
        attention.check(x, site)
        if ratio > 1:
            reduce = Conv(x.shape[2], ratio, ratio, conv_init=self.conv_init, dtype=self.dtype, name="sr")
            coarse = reduce(x.reshape(x.shape[0], *grid, x.shape[2])).reshape(x.shape[0], -1, x.shape[2])
            coarse = LayerNorm(epsilon=1e-5, dtype=self.dtype, name="norm")(coarse)
        of_keys = "".join(letter for letter in attention.streams if letter in "kv")
        of_queries = "".join(letter for letter in attention.streams if letter not in "kv")
        streams = project(attention, of_queries, x) | project(attention, of_keys, coarse)
        return attend(attention, x, site, streams)
