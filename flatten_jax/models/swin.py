"""Swin as in the FLatten release: linear stages with large windows, softmax stages with small ones."""

from collections.abc import Mapping
from functools import partial
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from flatten_jax.attention import WindowAttention, takes_bias
from flatten_jax.hosts.grids import pad_to_windows
from flatten_jax.ops.dense import Dense
from flatten_jax.models.backbone import Backbone
from flatten_jax.models.blocks import PatchEmbed, drop_path_rates, stage_letters
from flatten_jax.models.stack import block_class, on_grid, run_blocks
from flatten_jax.ops.norm import LayerNorm


class Swin(Backbone):
    """Swin (Liu et al., 2021) in the release's form.

    Any image_size: images, windows and odd grids are padded with zeros at the right and the bottom, as in Swin's
    detection code.

    Attributes: those of `Backbone`, and
        attn_type: one letter per stage, or with an M and a number: see `stage_letters`.
        embed_dim, depths, num_heads, mlp_ratio: the architecture; the width doubles from stage to stage.
        window_size: of linear blocks, clipped to the grid of the stage on each axis; 0: the whole grid, which is what
            the release's 56 at 224 px and 96 at 384 px come to.
        softmax_window_size: of softmax blocks, clipped likewise; 0: as in the release, 7 for a `window_size` up to 56
            and 12 above; where that is 0 too, a 32nd of the shorter side of the image and at least 7, which is 7 at
            224 px and 12 at 384 px, and needs no padding where the image is square and a multiple of 32.
    """

    no_weight_decay: ClassVar[tuple[str, ...]] = ("relative_position_bias_table",)
    epsilon: ClassVar[float] = 1e-5

    attn_type: str = "LLSS"
    embed_dim: int = 96
    depths: tuple[int, ...] = (2, 2, 6, 2)
    num_heads: tuple[int, ...] = (3, 6, 12, 24)
    mlp_ratio: float = 4.0
    window_size: int = 0
    softmax_window_size: int = 0

    def level_info(self) -> list[dict[str, Any]]:
        return [
            {"num_chs": self.embed_dim * 2**i, "reduction": 4 * 2**i, "module": f"layers.{i}"}
            for i in range(len(self.depths))
        ]

    def block_letters(self) -> list[str]:
        return stage_letters(self.attn_type, self.depths)

    def idle_options(self) -> set[str]:
        softmax = any(takes_bias(letter) for letter in set("".join(self.block_letters())))
        return super().idle_options() | (set() if softmax else {"softmax_window_size"})

    def levels(self, images: jax.Array, train: bool, count: int) -> list[jax.Array]:
        embed = PatchEmbed(self.embed_dim, 4, dtype=self.dtype, name="patch_embed")
        x, levels = embed(pad_to_windows(images, (4, 4))), []
        letters, rates = self.block_letters(), drop_path_rates(self.drop_path, self.depths)
        for i in range(count):
            stage = _Stage(
                self.num_heads[i],
                letters[i],
                tuple(rates[i]),
                self._windows(),
                self.mlp_ratio,
                self.epsilon,
                i < count - 1,
                self.attn_options,
                self.remat,
                self.remat_policy,
                self.scan,
                self.dtype,
                name=f"layers_{i}",
            )
            level, x = stage(x, train)
            levels.append(level)
        return levels

    def _windows(self) -> tuple[int, int]:
        """Windows of linear and of softmax blocks."""
        if self.window_size < 0 or self.softmax_window_size < 0:
            raise ValueError(
                f"window_size={self.window_size} and softmax_window_size={self.softmax_window_size} must be 0 or more"
            )
        softmax = max(7, min(self.image_size) // 32)
        if self.window_size:
            softmax = 7 if self.window_size <= 56 else 12
        return self.window_size or max(self.image_size), self.softmax_window_size or softmax


class _Stage(nn.Module):
    """Blocks, every second one shifted, and, where another stage follows, `downsample`, which merges 2 x 2 patches."""

    num_heads: int
    letters: str
    drop_path: tuple[float, ...]
    windows: tuple[int, int]
    mlp_ratio: float
    epsilon: float
    downsample: bool
    options: Mapping[str, Any]
    remat: bool
    remat_policy: str
    scan: bool
    dtype: jnp.dtype | None

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> tuple[jax.Array, jax.Array]:
        """x: (B, height, width, C) -> (what the blocks make of it, that merged or again itself)."""
        blocks = []
        for j, letter in enumerate(self.letters):
            attention = partial(
                WindowAttention,
                self.num_heads,
                window_size=self.windows[takes_bias(letter)],
                shifted=j % 2 == 1,
                attn_type=letter,
                options=self.options,
                dtype=self.dtype,
            )
            make = block_class(self.remat, self.remat_policy)
            blocks.append(make(attention, self.mlp_ratio, self.epsilon, dtype=self.dtype, name=f"blocks_{j}"))
        kinds = [(letter, j % 2) for j, letter in enumerate(self.letters)]
        x = on_grid(partial(run_blocks, blocks, kinds, self.drop_path, train=train, scan=self.scan), x)
        return x, _PatchMerging(self.epsilon, self.dtype, name="downsample")(x) if self.downsample else x


class _PatchMerging(nn.Module):
    """2 x 2 neighbours side by side, normalised, and reduced to twice the width."""

    epsilon: float
    dtype: jnp.dtype | None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = pad_to_windows(x, (2, 2))
        batch, height, width, channels = x.shape
        # The release's order: down within a column first, then the next column.
        x = x.reshape(batch, height // 2, 2, width // 2, 2, channels).transpose(0, 1, 3, 4, 2, 5)
        x = x.reshape(batch, height // 2, width // 2, 4 * channels)
        x = LayerNorm(epsilon=self.epsilon, dtype=self.dtype, name="norm")(x)
        return Dense(2 * channels, use_bias=False, dtype=self.dtype, name="reduction")(x)
