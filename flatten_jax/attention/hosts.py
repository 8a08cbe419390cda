"""The projections around a mixer, in the two forms of the release: one `qkv` layer, or `q` and `kv` with reduction.

A host makes queries, keys and values and projects the result; what happens between is a mixer, chosen by a letter from
`mixers.py`. The mixer's parameters live beside the host's (`attn/qkv`, `attn/scale`, ...), as in the
release, so any mixer fits any host and checkpoints keep the release's names.
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from flatten_jax.attention.mixers import make_mixer
from flatten_jax.initializers import linear_kernel, torch_conv_bias, torch_conv_kernel

Grid = tuple[int, int]


class QKVAttention(nn.Module):
    """Attention with one fused projection `qkv`: the form of DeiT and Swin.

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
    def __call__(self, x: jax.Array, grid: Grid) -> jax.Array:
        """x: (B, N, C), tokens row-major on `grid` = (height, width) -> (B, N, C)."""
        mixer = make_mixer(self.attn_type, self.num_heads, self.dtype, self.options)
        nn.share_scope(self, mixer)
        q, k, v = jnp.split(_dense(3 * x.shape[-1], self.dtype, "qkv")(x), 3, axis=-1)
        return _dense(x.shape[-1], self.dtype, "proj")(mixer(q, k, v, grid, grid))


class ReducedAttention(nn.Module):
    """Attention with `q`, `kv` and keys and values on a grid `sr_ratio` times coarser: the form of PVT and PVTv2.

    Attributes: those of QKVAttention, and
        sr_ratio: r, side of the patches that a strided convolution `sr` (and a LayerNorm `norm`) makes a key of.
    """

    num_heads: int
    attn_type: str = "L"
    sr_ratio: int = 1
    options: Mapping[str, Any] = nn.FrozenDict()
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, x: jax.Array, grid: Grid) -> jax.Array:
        """x: (B, N, C), tokens row-major on `grid` = (height, width) -> (B, N, C)."""
        batch, _, channels = x.shape
        mixer = make_mixer(self.attn_type, self.num_heads, self.dtype, self.options)
        nn.share_scope(self, mixer)
        q = _dense(channels, self.dtype, "q")(x)
        key_grid = grid
        if self.sr_ratio > 1:
            key_grid = (grid[0] // self.sr_ratio, grid[1] // self.sr_ratio)
            if 0 in key_grid:
                raise ValueError(f"{grid=} is smaller than sr_ratio={self.sr_ratio}: use a larger image or ratio 1")
            reduce = nn.Conv(
                channels,
                (self.sr_ratio, self.sr_ratio),
                strides=self.sr_ratio,
                padding="VALID",
                dtype=self.dtype,
                kernel_init=torch_conv_kernel,
                bias_init=torch_conv_bias(self.sr_ratio**2 * channels),
                name="sr",
            )
            x = reduce(x.reshape(batch, *grid, channels)).reshape(batch, -1, channels)
            x = nn.LayerNorm(epsilon=1e-5, use_fast_variance=False, dtype=self.dtype, name="norm")(x)
        k, v = jnp.split(_dense(2 * channels, self.dtype, "kv")(x), 2, axis=-1)
        return _dense(channels, self.dtype, "proj")(mixer(q, k, v, grid, key_grid))


def _dense(features: int, dtype: jnp.dtype | None, name: str) -> nn.Dense:
    return nn.Dense(features, dtype=dtype, kernel_init=linear_kernel, name=name)
