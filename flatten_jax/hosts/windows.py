"""The host of Swin: attention inside windows, every second block's shifted by half a window."""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from flatten_jax.attention.contract import Grid, Site
from flatten_jax.attention.table import takes_bias
from flatten_jax.hosts.grids import Windows, relative_position_index
from flatten_jax.hosts.plain import QKVAttention
from flatten_jax.ops.initializers import position_embedding


class WindowAttention(nn.Module):
    """QKVAttention inside windows, shifted by half a window where asked: the form of Swin.

    A grid that windows do not divide is padded with zeros at the right and the bottom, after the block's norm, as in
    Swin's detection code: the padding takes part as keys, and its own results are cut off. Attentions with scores get a
    learned relative position bias, and the mask that keeps apart what the cyclic shift wraps around. Others are shifted
    without a mask, as in the release.

    Attributes: those of QKVAttention, and
        window_size: side of the square window, clipped to the grid on each axis.
        shifted: shift by window // 2 along every axis that has more than one window.
    """

    num_heads: int
    window_size: int
    shifted: bool
    attn_type: str = "focused"
    options: Mapping[str, Any] = nn.FrozenDict()
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, x: jax.Array, site: Site) -> jax.Array:
        attention = QKVAttention(self.num_heads, self.attn_type, self.options, self.dtype)
        nn.share_scope(self, attention)
        windows = Windows.of(site.grid, self.window_size, self.shifted)
        bias = self._position_bias(windows.window) if takes_bias(self.attn_type) else None
        if windows.window == site.grid:
            return attention(x, site.replace(bias=bias))
        if site.prefix:
            raise ValueError("windows have no place for a class token: pool the tokens instead")
        if any(windows.shift) and bias is not None:
            bias = bias + windows.mask()[:, None]
        before = None if site.before is None else windows.split(site.before)
        out = attention(windows.split(x), site.replace(grid=windows.window, window=True, bias=bias, before=before))
        return windows.join(out)

    def _position_bias(self, window: Grid) -> jax.Array:
        """(1, h, N, N), learned for every relative position of two tokens of a window."""
        rows = (2 * window[0] - 1) * (2 * window[1] - 1)
        table = self.param("relative_position_bias_table", position_embedding, (rows, self.num_heads))
        return table[relative_position_index(window)].transpose(2, 0, 1)[None]
