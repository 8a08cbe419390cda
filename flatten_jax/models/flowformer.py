"""Flowformer for vision: a plain pyramid with flow attention in every block."""

from functools import partial
from typing import Any, ClassVar

import jax

from flatten_jax.attention import Site, pattern
from flatten_jax.hosts import QKVAttention
from flatten_jax.models.backbone import Backbone
from flatten_jax.models.blocks import PatchEmbed, patch_grid
from flatten_jax.models.published import Published
from flatten_jax.ops.initializers import position_embedding


class Flowformer(Backbone):
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

    attn_type: str = "flow"
    embed_dims: tuple[int, ...] = (96, 192, 384, 768)
    depths: tuple[int, ...] = (3, 3, 10, 3)
    num_heads: tuple[int, ...] = (12, 12, 12, 12)
    mlp_ratio: float = 4.0

    def level_info(self) -> list[dict[str, Any]]:
        return [
            {"num_chs": channels, "reduction": 4 * 2**i, "module": f"blocks.{i}"}
            for i, channels in enumerate(self.embed_dims)
        ]

    def attentions(self) -> list[tuple[str, ...]]:
        return pattern(self.attn_type, self.depths)

    def levels(self, images: jax.Array, train: bool, count: int) -> list[jax.Array]:
        patch_grid(self.image_size, 4 * 2 ** (len(self.depths) - 1))  # said once for the image, not stage by stage
        x, levels = images, []
        for i in range(count):
            size, name = 4 if i == 0 else 2, f"patch_embed_{i}"
            x = PatchEmbed(self.embed_dims[i], size, norm=False, dtype=self.dtype, name=name)(x)
            if i == 0:
                pos_embed = self.param("pos_embed", position_embedding, (1, x.shape[1] * x.shape[2], x.shape[3]))
                x = x + pos_embed.astype(x.dtype).reshape(1, *x.shape[1:])

            def host(j: int, attention: str, options: dict[str, Any], i: int = i) -> Any:
                return partial(QKVAttention, self.num_heads[i], attn_type=attention, options=options, dtype=self.dtype)

            site = Site(x.shape[1:3], train=train)
            x = self.stage(x, site, i, host, f"blocks_{i}_", mlp_ratio=self.mlp_ratio, gamma=1e-5)[-1]
            levels.append(x)
        return levels


FAMILY = Flowformer
MODELS = {"flowformer": {}}
ALIASES: dict[str, str] = {}
PUBLISHED = {"flowformer": Published(80.6)}
