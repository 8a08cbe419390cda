"""Models of one stage, whose blocks are all of one width on one grid: DeiT, and what has its shape."""

from functools import partial
from typing import Any

import flax.linen as nn
import jax

from flatten_jax.attention import of_stage, pattern
from flatten_jax.attention.contract import Grid
from flatten_jax.hosts import QKVAttention
from flatten_jax.models.backbone import Backbone
from flatten_jax.models.blocks import patch_grid


class Isotropic(Backbone):
    """Base of the models of one stage; its levels are its blocks.

    Attributes: those of `Backbone`, and
        attn_type: one attention for all blocks, or one for each; options that are tuples have an entry for each block.
        patch_size, embed_dim, depth, num_heads, mlp_ratio: the architecture.
        out_indices: blocks, all of stride `patch_size`; by default the last of each quarter.
    """

    patch_size: int = 16
    embed_dim: int = 192
    depth: int = 12
    num_heads: int = 3
    mlp_ratio: float = 4.0

    def grid(self) -> Grid:
        """Of the tokens; ValueError for an image_size that has none."""
        return patch_grid(self.image_size, self.patch_size)

    def widths(self) -> tuple[int, ...]:
        """Channels of each stage: of the one there is."""
        return (self.embed_dim,)

    def level_info(self) -> list[dict[str, Any]]:
        return [
            {"num_chs": self.embed_dim, "reduction": self.patch_size, "module": f"blocks.{i}"}
            for i in range(self.depth)
        ]

    def default_indices(self) -> tuple[int, ...]:
        return tuple(sorted({-(-quarter * self.depth // 4) - 1 for quarter in (1, 2, 3, 4)}))

    def attentions(self) -> list[tuple[str, ...]]:
        if self.attn_type.isupper() and len(self.attn_type) not in (1, self.depth):
            raise ValueError(f"attn_type={self.attn_type!r} needs one letter, or one for each of {self.depth} blocks")
        each = "," in self.attn_type or (self.attn_type.isupper() and len(self.attn_type) > 1)
        stages = pattern(self.attn_type, [1] * self.depth if each else [self.depth])
        return [tuple(name for stage in stages for name in stage)]

    def host(self, i: int, j: int, attention: str, options: dict[str, Any]) -> partial[nn.Module]:
        return partial(QKVAttention, self.num_heads, attn_type=attention, options=options, dtype=self.dtype)

    @property
    def loops(self) -> bool:
        """`scan` where it can be: maps of blocks in between are not to be had from a loop."""
        return self.scan and not self.features_only

    def options_of(self, i: int, j: int) -> dict[str, Any]:
        return of_stage(self.attn_options, j)

    @property
    def attn_entries(self) -> int:
        return self.depth

    def pool(self, x: jax.Array) -> jax.Array:
        return x.mean(axis=1)

    def as_map(self, x: jax.Array) -> jax.Array:
        return x[:, self.prefix :].reshape(x.shape[0], *self.grid(), -1)
