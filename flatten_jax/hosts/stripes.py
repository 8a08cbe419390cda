"""The host of CSwin: attention in cross-shaped stripes, or in one window, with LePE."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from flatten_jax.attention.contract import Grid, Site
from flatten_jax.attention.table import make_attention
from flatten_jax.hosts.grids import pad_to_windows, partition, unpartition
from flatten_jax.hosts.plain import project
from flatten_jax.ops.dense import Dense
from flatten_jax.ops.depthwise import DepthwiseConv
from flatten_jax.ops.norm import LayerNorm


class StripeAttention(nn.Module):
    """In stripes, or in one window, with LePE: the form of CSwin, whose block has these layers and `norm1` as its own.

    With two branches, one takes half the heads over vertical stripes `split_size` wide, the other the other half over
    horizontal stripes as high. With one, all heads share a window. A grid that they do not divide is padded as in
    `WindowAttention`. An attention that looks at x itself sees it without the norm, as in the originals (InLine).

    Attributes: those of QKVAttention, and
        split_size: width of a stripe or side of the window, clipped to the grid on each axis; 0: the whole grid.
        branches: 1 or 2.
    """

    num_heads: int
    split_size: int
    branches: int
    epsilon: float = 1e-5
    attn_type: str = "focused"
    options: Mapping[str, Any] = nn.FrozenDict()
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, x: jax.Array, site: Site) -> jax.Array:
        (batch, _, channels), (height, width) = x.shape, site.grid
        if self.num_heads % self.branches:
            raise ValueError(f"num_heads={self.num_heads} is not divisible by branches={self.branches} of the stripes")
        split = (min(self.split_size or height, height), min(self.split_size or width, width))
        normed = LayerNorm(epsilon=self.epsilon, dtype=self.dtype, name="norm1")(x)

        def padded(x: jax.Array) -> jax.Array:
            return pad_to_windows(x.reshape(batch, height, width, -1), split)

        attention = make_attention(self.attn_type, self.num_heads, self.dtype, self.options)
        streams = project(attention, attention.streams, padded(normed))
        x = padded(x if attention.streams else normed)
        windows = [split] if self.branches == 1 else [(x.shape[1], split[1]), (split[0], x.shape[2])]
        if site.before is not None:
            site = site.replace(before=padded(site.before))
        out = []
        for i, window in enumerate(windows):
            part, here, own = jax.tree.map(lambda a, i=i: jnp.split(a, self.branches, axis=-1)[i], (x, site, streams))
            make = partial(_LePEAttention, self.num_heads // self.branches, window, self.attn_type, self.options)
            out.append(make(self.dtype, name=f"attns_{i}")(part, here, own))
        out = jnp.concatenate(out, axis=-1)[:, :height, :width].reshape(batch, -1, channels)
        projects = attention.streams and attention.projects_out
        return Dense(channels, dtype=self.dtype, name="proj")(out) if projects else out


class _LePEAttention(nn.Module):
    """An attention inside windows plus LePE (locally enhanced position encoding): `get_v`, a 3 x 3 convolution of v."""

    num_heads: int
    window: Grid
    attn_type: str
    options: Mapping[str, Any]
    dtype: jnp.dtype | None

    @nn.compact
    def __call__(self, x: jax.Array, site: Site, streams: Mapping[str, jax.Array]) -> jax.Array:
        """x and streams: (B, height, width, ·), whole windows -> (B, height, width, C)."""
        attention = make_attention(self.attn_type, self.num_heads, self.dtype, self.options)
        nn.share_scope(self, attention)
        grid = x.shape[1:3]
        x, site, streams = jax.tree.map(lambda a: partition(a, self.window), (x, site, streams))
        site = site.replace(grid=self.window, window=self.window != grid)
        attention.check(x, site)
        out = attention(x, site, *(streams[letter] for letter in attention.streams))
        if "v" in streams and attention.projects_out:  # LePE stands before the projection
            v = streams["v"].reshape(-1, *self.window, streams["v"].shape[2])
            out = out + DepthwiseConv(v.shape[3], 3, self.dtype, name="get_v")(v).reshape(out.shape)
        return unpartition(out, self.window, grid)
