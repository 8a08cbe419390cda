"""The projections around a mixer, in the forms of the four families.

A host makes queries, keys and values and projects the result; what happens between is a mixer, chosen by a letter from
`mixers.py`. The mixer's parameters live beside the host's (`attn/qkv`, `attn/scale`, ...), as in the release, so any
mixer fits any host and checkpoints keep the release's names.
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from flatten_jax.ops.depthwise import DepthwiseConv
from flatten_jax.attention.mixers import make_mixer, takes_bias
from flatten_jax.hosts.grids import pad_to_windows, partition, relative_position_index, shift_mask, unpartition
from flatten_jax.ops.convolution import Conv
from flatten_jax.ops.initializers import TORCH_CONV, ConvInit, position_embedding
from flatten_jax.ops.dense import Dense
from flatten_jax.ops.norm import LayerNorm

Grid = tuple[int, int]


class QKVAttention(nn.Module):
    """Attention with one fused projection `qkv`: the form of DeiT.

    Attributes:
        num_heads: number of heads h, a divisor of C.
        attn_type: letter of the mixer: "L" focused linear, "S" softmax.
        options: further attributes of the mixer, such as {"focusing_factor": 3}.
        dtype: of the computation; parameters are float32.
    """

    num_heads: int
    attn_type: str = "L"
    options: Mapping[str, Any] = nn.FrozenDict()
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, x: jax.Array, grid: Grid, bias: jax.Array | None = None) -> jax.Array:
        """x: (B, N, C), tokens row-major on `grid` = (height, width); bias: as in `SoftmaxMixer` -> (B, N, C)."""
        mixer = make_mixer(self.attn_type, self.num_heads, self.dtype, self.options)
        nn.share_scope(self, mixer)
        q, k, v = jnp.split(Dense(3 * x.shape[-1], dtype=self.dtype, name="qkv")(x), 3, axis=-1)
        out = mixer(q, k, v, grid, grid) if bias is None else mixer(q, k, v, grid, grid, bias)
        return Dense(x.shape[-1], dtype=self.dtype, name="proj")(out)


class WindowAttention(nn.Module):
    """QKVAttention inside windows, shifted by half a window where asked: the form of Swin.

    A grid that windows do not divide is padded with zeros at the right and the bottom, after the block's norm, as in
    Swin's detection code: the padding takes part as keys, and its own results are cut off. Mixers with scores get a
    learned relative position bias, and the mask that keeps apart what the cyclic shift wraps around. Others are shifted
    without a mask, as in the release.

    Attributes: those of QKVAttention, and
        window_size: side of the square window, clipped to the grid on each axis.
        shifted: shift by window // 2 along every axis that has more than one window.
    """

    num_heads: int
    window_size: int
    shifted: bool
    attn_type: str = "L"
    options: Mapping[str, Any] = nn.FrozenDict()
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, x: jax.Array, grid: Grid) -> jax.Array:
        """x: (B, N, C), tokens row-major on `grid` = (height, width) -> (B, N, C)."""
        (batch, _, channels), (height, width) = x.shape, grid
        attention = QKVAttention(self.num_heads, self.attn_type, self.options, self.dtype)
        nn.share_scope(self, attention)
        window = (min(self.window_size, height), min(self.window_size, width))
        bias = self._position_bias(window) if takes_bias(self.attn_type) else None
        if window == grid:
            return attention(x, grid, bias)

        x = pad_to_windows(x.reshape(batch, height, width, channels), window)
        padded = x.shape[1:3]
        shift = tuple(size // 2 if self.shifted and size < side else 0 for side, size in zip(grid, window, strict=True))
        if any(shift):
            x = jnp.roll(x, (-shift[0], -shift[1]), axis=(1, 2))
            if bias is not None:
                bias = bias + shift_mask(padded, window, shift)[:, None]
        x = unpartition(attention(partition(x, window), window, bias), window, padded)
        if any(shift):
            x = jnp.roll(x, shift, axis=(1, 2))
        return x[:, :height, :width].reshape(batch, -1, channels)

    def _position_bias(self, window: Grid) -> jax.Array:
        """(1, h, N, N), learned for every relative position of two tokens of a window."""
        rows = (2 * window[0] - 1) * (2 * window[1] - 1)
        table = self.param("relative_position_bias_table", position_embedding, (rows, self.num_heads))
        return table[relative_position_index(window)].transpose(2, 0, 1)[None]


class StripeAttention(nn.Module):
    """Attention in stripes, or in one window, with LePE: the form of CSwin, where `qkv` and `proj` are the block's.

    With two branches, one takes half the heads over vertical stripes `split_size` wide, the other the other half over
    horizontal stripes as high. With one, all heads share a window. A grid that they do not divide is padded as in
    `WindowAttention`.

    Attributes: those of QKVAttention, and
        split_size: width of a stripe or side of the window, clipped to the grid on each axis; 0: the whole grid.
        branches: 1 or 2.
    """

    num_heads: int
    split_size: int
    branches: int
    attn_type: str = "L"
    options: Mapping[str, Any] = nn.FrozenDict()
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, x: jax.Array, grid: Grid) -> jax.Array:
        """x: (B, N, C), tokens row-major on `grid` = (height, width) -> (B, N, C)."""
        (batch, _, channels), (height, width) = x.shape, grid
        if self.num_heads % self.branches:
            raise ValueError(f"num_heads={self.num_heads} is not divisible by branches={self.branches} of the stripes")
        split = (min(self.split_size or height, height), min(self.split_size or width, width))
        x = pad_to_windows(x.reshape(batch, height, width, channels), split)
        windows = [split] if self.branches == 1 else [(x.shape[1], split[1]), (split[0], x.shape[2])]

        qkv = jnp.split(Dense(3 * channels, dtype=self.dtype, name="qkv")(x), 3, axis=-1)
        parts = zip(*(jnp.split(part, self.branches, axis=-1) for part in qkv), strict=True)
        out = [
            _LePEAttention(
                self.num_heads // self.branches, window, self.attn_type, self.options, self.dtype, name=f"attns_{i}"
            )(*part)
            for i, (window, part) in enumerate(zip(windows, parts, strict=True))
        ]
        out = jnp.concatenate(out, axis=-1)[:, :height, :width].reshape(batch, -1, channels)
        return Dense(channels, dtype=self.dtype, name="proj")(out)


class _LePEAttention(nn.Module):
    """A mixer inside windows plus LePE, the locally enhanced position encoding: `get_v`, a 3 x 3 convolution of v."""

    num_heads: int
    window: Grid
    attn_type: str
    options: Mapping[str, Any]
    dtype: jnp.dtype | None

    @nn.compact
    def __call__(self, q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        """q, k, v: (B, height, width, C), whole windows -> the same shape."""
        mixer = make_mixer(self.attn_type, self.num_heads, self.dtype, self.options)
        nn.share_scope(self, mixer)
        grid, channels = v.shape[1:3], v.shape[3]
        q, k, v = (partition(x, self.window) for x in (q, k, v))
        lepe = DepthwiseConv(channels, kernel_size=3, dtype=self.dtype, name="get_v")(
            v.reshape(-1, *self.window, channels)
        )
        out = mixer(q, k, v, self.window, self.window) + lepe.reshape(v.shape)
        return unpartition(out, self.window, grid)


class ReducedAttention(nn.Module):
    """Attention with `q`, `kv` and keys and values on a grid `sr_ratio` times coarser: the form of PVT and PVTv2.

    Attributes: those of QKVAttention, and
        sr_ratio: r, side of the patches that a strided convolution `sr` (and a LayerNorm `norm`) makes a key of.
        conv_init: initial values of the convolutions, those of the mixer too.
    """

    num_heads: int
    attn_type: str = "L"
    sr_ratio: int = 1
    options: Mapping[str, Any] = nn.FrozenDict()
    dtype: jnp.dtype | None = None
    conv_init: ConvInit = TORCH_CONV

    @nn.compact
    def __call__(self, x: jax.Array, grid: Grid) -> jax.Array:
        """x: (B, N, C), tokens row-major on `grid` = (height, width) -> (B, N, C)."""
        batch, _, channels = x.shape
        mixer = make_mixer(self.attn_type, self.num_heads, self.dtype, self.options, self.conv_init)
        nn.share_scope(self, mixer)
        q = Dense(channels, dtype=self.dtype, name="q")(x)
        key_grid = grid
        if self.sr_ratio > 1:
            key_grid = (grid[0] // self.sr_ratio, grid[1] // self.sr_ratio)
            if 0 in key_grid:
                raise ValueError(f"{grid=} is smaller than sr_ratio={self.sr_ratio}: use a larger image or ratio 1")
            reduce = Conv(channels, self.sr_ratio, self.sr_ratio, conv_init=self.conv_init, dtype=self.dtype, name="sr")
            x = reduce(x.reshape(batch, *grid, channels)).reshape(batch, -1, channels)
            x = LayerNorm(epsilon=1e-5, dtype=self.dtype, name="norm")(x)
        k, v = jnp.split(Dense(2 * channels, dtype=self.dtype, name="kv")(x), 2, axis=-1)
        return Dense(channels, dtype=self.dtype, name="proj")(mixer(q, k, v, grid, key_grid))
