"""DeiT, with softmax attention and a class token as in timm, or with linear attention and mean pooling."""

from functools import partial
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from flatten_jax.attention import QKVAttention
from flatten_jax.ops.initializers import position_embedding
from flatten_jax.models.backbone import Backbone
from flatten_jax.models.blocks import PatchEmbed, drop_path_rates, patch_grid
from flatten_jax.models.stack import block_class, run_blocks


class DeiT(Backbone):
    """DeiT (Touvron et al., 2021); FLatten-DeiT is the same with linear blocks and no class token.

    Attributes: those of `Backbone`, and
        image_size: (height, width), each a multiple of `patch_size`.
        attn_type: one letter for all blocks, or one for each.
        patch_size, embed_dim, depth, num_heads, mlp_ratio: the architecture.
        class_token: classify by a learned token; otherwise by the mean of the tokens. Softmax attention only.
        out_indices: blocks, all of stride `patch_size`; by default the last of each quarter.
    """

    no_weight_decay: ClassVar[tuple[str, ...]] = ("pos_embed", "cls_token")

    patch_size: int = 16
    embed_dim: int = 192
    depth: int = 12
    num_heads: int = 3
    mlp_ratio: float = 4.0
    class_token: bool = False

    def level_info(self) -> list[dict[str, Any]]:
        return [
            {"num_chs": self.embed_dim, "reduction": self.patch_size, "module": f"blocks.{i}"}
            for i in range(self.depth)
        ]

    def default_indices(self) -> tuple[int, ...]:
        return tuple(sorted({-(-quarter * self.depth // 4) - 1 for quarter in (1, 2, 3, 4)}))

    def block_letters(self) -> list[str]:
        if len(self.attn_type) not in (1, self.depth):
            raise ValueError(f"attn_type={self.attn_type!r} needs one letter, or one for each of {self.depth} blocks")
        return [self.attn_type * self.depth if len(self.attn_type) == 1 else self.attn_type]

    def levels(self, images: jax.Array, train: bool, count: int) -> list[jax.Array]:
        grid = patch_grid(self.image_size, self.patch_size)
        embed = PatchEmbed(self.embed_dim, self.patch_size, norm=False, dtype=self.dtype, name="patch_embed")
        x = embed(images).reshape(images.shape[0], -1, self.embed_dim)
        if self.class_token:
            token = self.param("cls_token", position_embedding, (1, 1, self.embed_dim))
            x = jnp.concatenate([jnp.broadcast_to(token.astype(x.dtype), (x.shape[0], 1, self.embed_dim)), x], axis=1)
        x = x + self.param("pos_embed", position_embedding, (1, x.shape[1], self.embed_dim)).astype(x.dtype)

        letters, rates = self.block_letters()[0][:count], drop_path_rates(self.drop_path, [self.depth])[0][:count]
        blocks = []
        for i, letter in enumerate(letters):
            attention = partial(
                QKVAttention, self.num_heads, attn_type=letter, options=self.attn_options, dtype=self.dtype
            )
            make = block_class(self.remat, self.remat_policy)
            blocks.append(make(attention, self.mlp_ratio, self.epsilon, dtype=self.dtype, name=f"blocks_{i}"))
        # Maps of blocks in between are not to be had from a loop.
        return run_blocks(blocks, letters, rates, x, grid, train, scan=self.scan and not self.features_only)

    def pool(self, x: jax.Array) -> jax.Array:
        return x[:, 0] if self.class_token else x.mean(axis=1)

    def as_map(self, x: jax.Array) -> jax.Array:
        x = x[:, 1:] if self.class_token else x
        return x.reshape(x.shape[0], *patch_grid(self.image_size, self.patch_size), -1)
