"""Flowformer for vision: a plain pyramid with flow attention in every block."""

from typing import ClassVar

import jax

from flatten_jax.attention import Site
from flatten_jax.models.blocks import PatchEmbed, patch_grid
from flatten_jax.models.published import Published
from flatten_jax.models.staged import Staged
from flatten_jax.ops.initializers import position_embedding


class Flowformer(Staged):
    """Flowformer's vision model (Wu et al., ICML 2022, arXiv 2202.06258).

    Positions are learned, for the first stage alone. What the MLPs give, and not the attentions, is scaled by a learned
    `gamma`, 1e-5 at first. Rectangles are beyond the original, which is square.

    Attributes: those of `Backbone`, and
        image_size: (height, width), each a multiple of 32.
        attn_type: an attention for each stage.
        embed_dims, depths, num_heads, mlp_ratio: the architecture, one entry per stage but for the last of them.
    """

    hallmark: ClassVar[str] = "blocks.0.0.gamma"
    no_weight_decay: ClassVar[tuple[str, ...]] = ("pos_embed",)
    level_name: ClassVar[str] = "blocks.{0}"

    attn_type: str = "flow"
    embed_dims: tuple[int, ...] = (96, 192, 384, 768)
    depths: tuple[int, ...] = (3, 3, 10, 3)
    num_heads: tuple[int, ...] = (12, 12, 12, 12)
    mlp_ratio: float = 4.0

    def levels(self, images: jax.Array, train: bool, count: int) -> list[jax.Array]:
        patch_grid(self.image_size, self.stride)  # said once for the image, not stage by stage
        x, levels = images, []
        for i in range(count):
            size, name = 4 if i == 0 else 2, f"patch_embed_{i}"
            x = PatchEmbed(self.embed_dims[i], size, norm=False, dtype=self.dtype, name=name)(x)
            if i == 0:
                pos_embed = self.param("pos_embed", position_embedding, (1, x.shape[1] * x.shape[2], x.shape[3]))
                x = x + pos_embed.astype(x.dtype).reshape(1, *x.shape[1:])

            site = Site(x.shape[1:3], train=train)
            x = self.stage(x, site, i, f"blocks_{i}_", mlp_ratio=self.mlp_ratio, gamma=1e-5)[-1]
            levels.append(x)
        return levels


FAMILY = Flowformer
MODELS = {"flowformer": {}}
ALIASES: dict[str, str] = {}
PUBLISHED = {"flowformer": Published(80.6)}
