"""DeiT, with softmax attention and a class token as in timm, or with linear attention and mean pooling."""

from typing import ClassVar

import jax
import jax.numpy as jnp

from flatten_jax.attention import Site
from flatten_jax.models.blocks import PatchEmbed
from flatten_jax.models.isotropic import Isotropic
from flatten_jax.models.published import Published
from flatten_jax.ops.initializers import position_embedding


class DeiT(Isotropic):
    """DeiT (Touvron et al., 2021); FLatten-DeiT is the same with linear blocks and no class token.

    Attributes: those of `Isotropic`, and
        image_size: (height, width), each a multiple of `patch_size`.
        class_token: classify by a learned token, which not every attention takes; otherwise by the mean of the tokens.
    """

    no_weight_decay: ClassVar[tuple[str, ...]] = ("pos_embed", "cls_token")

    class_token: bool = False

    def levels(self, images: jax.Array, train: bool, count: int) -> list[jax.Array]:
        grid = self.grid()
        embed = PatchEmbed(self.embed_dim, self.patch_size, norm=False, dtype=self.dtype, name="patch_embed")
        x = embed(images).reshape(images.shape[0], -1, self.embed_dim)
        if self.class_token:
            token = self.param("cls_token", position_embedding, (1, 1, self.embed_dim))
            x = jnp.concatenate([jnp.broadcast_to(token.astype(x.dtype), (x.shape[0], 1, self.embed_dim)), x], axis=1)
        x = x + self.param("pos_embed", position_embedding, (1, x.shape[1], self.embed_dim)).astype(x.dtype)

        site = Site(grid, prefix=int(self.class_token), train=train)
        return self.stage(x, site, 0, self.host, "blocks_", count=count, scan=self.loops, mlp_ratio=self.mlp_ratio)

    def pool(self, x: jax.Array) -> jax.Array:
        return x[:, 0] if self.class_token else super().pool(x)

    def as_map(self, x: jax.Array) -> jax.Array:
        return super().as_map(x[:, 1:] if self.class_token else x)


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
