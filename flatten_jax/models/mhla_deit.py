"""MHLA-DeiT: DeiT on a padded picture whose tokens are cut into blocks, with multi-head linear attention over them."""

from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from flatten_jax.attention.contract import Grid
from flatten_jax.models.blocks import patch_grid
from flatten_jax.models.deit import DeiT
from flatten_jax.models.published import Published
from flatten_jax.ops.norm import LayerNorm


class MHLADeiT(DeiT):
    """DeiT with `mhla` (ICLR 2026, arXiv 2601.07832): no class token, 4 x 4 blocks of 4 x 4 tokens.

    A picture of 224 px is padded with zeros to 256, so that its 16 x 16 tokens can be cut into blocks. The mean of all
    tokens, those of the padding too, is normed (`fc_norm`) and classified. Maps of features_only are without the
    padding. `forward_features` gives the tokens before `fc_norm`.

    Other sizes than the original's are taken where `mhla` can cut them into square blocks (`block_side`). Its mixing of
    blocks is learned for one number of them, so that weights cannot be loaded into a model of another image_size.

    Attributes: those of `DeiT`, and
        margin: patches of zeros on every side of the picture.
    """

    hallmark: ClassVar[str] = "blocks.0.attn.piece_attn.conv.weight"

    attn_type: str = "mhla"
    margin: int = 1

    def grid(self) -> Grid:
        height, width = patch_grid(self.image_size, self.patch_size)
        return height + 2 * self.margin, width + 2 * self.margin

    def levels(self, images: jax.Array, train: bool, count: int) -> list[jax.Array]:
        zeros = (self.margin * self.patch_size,) * 2
        return super().levels(jnp.pad(images, ((0, 0), zeros, zeros, (0, 0))), train, count)

    def final_norm(self, x: jax.Array) -> jax.Array:
        return x

    def pool(self, x: jax.Array) -> jax.Array:
        return LayerNorm(epsilon=self.epsilon, dtype=self.dtype, name="fc_norm")(super().pool(x))

    def as_map(self, x: jax.Array) -> jax.Array:
        height, width = self.grid()
        return super().as_map(x)[:, self.margin : height - self.margin, self.margin : width - self.margin]


_OPTIONS = nn.FrozenDict(qk_norm=True, transform="linear")
FAMILY = MHLADeiT
MODELS = {
    "mhla_deit_t": dict(embed_dim=192, num_heads=3, attn_options=_OPTIONS),
    "mhla_deit_s": dict(embed_dim=384, num_heads=6, attn_options=_OPTIONS),
    "mhla_deit_b": dict(embed_dim=768, num_heads=12, attn_options=_OPTIONS),
}
ALIASES: dict[str, str] = {}
PUBLISHED = {"mhla_deit_t": Published(75.8), "mhla_deit_s": Published(81.0)}
