"""DeiT, with softmax attention and a class token as in timm, or with linear attention and mean pooling."""

from functools import partial
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from flatten_jax.attention import Site, of_stage, pattern
from flatten_jax.hosts import QKVAttention
from flatten_jax.models.backbone import Backbone
from flatten_jax.models.blocks import PatchEmbed, patch_grid
from flatten_jax.models.published import Published
from flatten_jax.ops.initializers import position_embedding
from flatten_jax.ops.norm import LayerNorm


class DeiT(Backbone):
    """DeiT (Touvron et al., 2021); FLatten-DeiT is the same with linear blocks and no class token.

    Attributes: those of `Backbone`, and
        image_size: (height, width), each a multiple of `patch_size`.
        attn_type: one attention for all blocks, or one for each; options that are tuples have an entry for each block.
        patch_size, embed_dim, depth, num_heads, mlp_ratio: the architecture.
        class_token: classify by a learned token, which not every attention takes; otherwise by the mean of the tokens.
        fc_norm: classify by the mean of the tokens, without a class token, normalised after pooling and not before, as
            timm's mean-pooled ViTs do.
        out_indices: blocks, all of stride `patch_size`; by default the last of each quarter.
    """

    no_weight_decay: ClassVar[tuple[str, ...]] = ("pos_embed", "cls_token")

    patch_size: int = 16
    embed_dim: int = 192
    depth: int = 12
    num_heads: int = 3
    mlp_ratio: float = 4.0
    class_token: bool = False
    fc_norm: bool = False

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

    def levels(self, images: jax.Array, train: bool, count: int) -> list[jax.Array]:
        grid = patch_grid(self.image_size, self.patch_size)
        embed = PatchEmbed(self.embed_dim, self.patch_size, norm=False, dtype=self.dtype, name="patch_embed")
        x = embed(images).reshape(images.shape[0], -1, self.embed_dim)
        if self.class_token:
            token = self.param("cls_token", position_embedding, (1, 1, self.embed_dim))
            x = jnp.concatenate([jnp.broadcast_to(token.astype(x.dtype), (x.shape[0], 1, self.embed_dim)), x], axis=1)
        x = x + self.param("pos_embed", position_embedding, (1, x.shape[1], self.embed_dim)).astype(x.dtype)

        site = Site(grid, prefix=int(self.class_token), train=train)

        def host(j: int, attention: str, options: dict[str, Any]) -> Any:
            return partial(QKVAttention, self.num_heads, attn_type=attention, options=options, dtype=self.dtype)

        # Maps of blocks in between are not to be had from a loop.
        scan = self.scan and not self.features_only
        return self.stage(x, site, 0, host, "blocks_", count=count, scan=scan, mlp_ratio=self.mlp_ratio)

    def options_of(self, i: int, j: int) -> dict[str, Any]:
        return of_stage(self.attn_options, j)

    @property
    def attn_entries(self) -> int:
        return self.depth

    def final_norm(self, x: jax.Array) -> jax.Array:
        return x if self.fc_norm else super().final_norm(x)

    def pool(self, x: jax.Array) -> jax.Array:
        if self.fc_norm:
            x = x[:, int(self.class_token) :].mean(axis=1)
            return LayerNorm(epsilon=self.epsilon, dtype=self.dtype, name="fc_norm")(x)
        return x[:, 0] if self.class_token else x.mean(axis=1)

    def as_map(self, x: jax.Array) -> jax.Array:
        x = x[:, 1:] if self.class_token else x
        return x.reshape(x.shape[0], *patch_grid(self.image_size, self.patch_size), -1)


_SIZES = {
    "t": dict(embed_dim=192, num_heads=3),
    "s": dict(embed_dim=384, num_heads=6),
    "b": dict(embed_dim=768, num_heads=12),
}
FAMILY = DeiT
MODELS = {
    **{f"flatten_deit_{size}": dict(own, attn_type="focused") for size, own in _SIZES.items()},
    **{f"deit_{size}": dict(own, attn_type="softmax", class_token=True) for size, own in _SIZES.items()},
}
ALIASES: dict[str, str] = {}
PUBLISHED = {
    "flatten_deit_t": Published(74.1),
    "deit_t": Published(72.2),
}
