"""DeiT, with a class token as in timm, InLine and Agent Attention, or with linear attention and mean pooling."""

from functools import partial
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from flatten_jax.attention import Site, of_stage, pattern
from flatten_jax.hosts import QKVAttention
from flatten_jax.models.backbone import Backbone
from flatten_jax.models.blocks import PatchEmbed, patch_grid
from flatten_jax.models.published import WEIGHTS, Published
from flatten_jax.ops.initializers import position_embedding


class DeiT(Backbone):
    """DeiT (Touvron et al., 2021); FLatten-DeiT is the same with linear blocks and no class token.

    InLine-DeiT (Han et al., NeurIPS 2024) keeps the class token and has widths, heads and image sizes of its own: its S
    and B are narrower than DeiT's, on larger images. Agent-DeiT (Han et al., ECCV 2024) has DeiT's; in B only the first
    four blocks have agents.

    Attributes: those of `Backbone`, and
        image_size: (height, width), each a multiple of `patch_size`.
        attn_type: one attention for all blocks, or one for each; options that are tuples have an entry for each block.
        patch_size, embed_dim, depth, num_heads, mlp_ratio: the architecture.
        class_token: classify by a learned token, which not every attention takes; otherwise by the mean of the tokens.
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

    def pool(self, x: jax.Array) -> jax.Array:
        return x[:, 0] if self.class_token else x.mean(axis=1)

    def as_map(self, x: jax.Array) -> jax.Array:
        x = x[:, 1:] if self.class_token else x
        return x.reshape(x.shape[0], *patch_grid(self.image_size, self.patch_size), -1)


_SIZES = {
    "t": dict(embed_dim=192, num_heads=3),
    "s": dict(embed_dim=384, num_heads=6),
    "b": dict(embed_dim=768, num_heads=12),
}
_INLINE = dict(attn_type="inline", class_token=True)
_AGENT = dict(attn_type="agent", class_token=True, attn_options=nn.FrozenDict(agent_num=49))
FAMILY = DeiT
MODELS = {
    **{f"flatten_deit_{size}": dict(own, attn_type="focused") for size, own in _SIZES.items()},
    **{f"deit_{size}": dict(own, attn_type="softmax", class_token=True) for size, own in _SIZES.items()},
    "inline_deit_t": dict(_INLINE, embed_dim=192, num_heads=6),
    "inline_deit_s": dict(_INLINE, embed_dim=320, num_heads=10, image_size=(288, 288)),
    "inline_deit_b": dict(_INLINE, embed_dim=384, num_heads=12, image_size=(448, 448)),
    "agent_deit_t": dict(_SIZES["t"], **_AGENT),
    "agent_deit_s": dict(_SIZES["s"], **_AGENT),
    "agent_deit_s_448": dict(_SIZES["s"], **_AGENT, image_size=(448, 448)),
    "agent_deit_b": dict(
        _SIZES["b"], attn_type="agent*4+softmax", class_token=True, attn_options=nn.FrozenDict(agent_num=81)
    ),
}
# The names of InLine's and Agent's functions (models/build.py), and in their configs (MODEL.NAME).
ALIASES = {
    **{
        f"{paper}_deit_{long}": f"{paper}_deit_{long[0]}"
        for paper in ("inline", "agent")
        for long in ("tiny", "small", "base")
    },
    "agent_deit_small_448": "agent_deit_s_448",
}
PUBLISHED = {
    "flatten_deit_t": Published(74.1),
    "deit_t": Published(72.2),
    "inline_deit_t": Published(74.5, weights=WEIGHTS.format("1d6b8191ad6d4114b291")),
    "inline_deit_s": Published(80.2, weights=WEIGHTS.format("2f3898b07e9247f3beb3")),
    "inline_deit_b": Published(82.3, weights=WEIGHTS.format("10bdd726d4b0435eb34e")),
    "agent_deit_t": Published(74.9, weights=WEIGHTS.format("57e0904221824ee7b7af")),
    "agent_deit_s": Published(80.5, weights=WEIGHTS.format("fdd43304372541db8ea7")),
    "agent_deit_s_448": Published(83.1, weights=WEIGHTS.format("a228f86241c445f1969b")),
    "agent_deit_b": Published(82.0, weights=WEIGHTS.format("5115f15fdd7e4ab58fbc")),
}
