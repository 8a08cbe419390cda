"""DeiT, with a class token as in timm, InLine and Agent Attention, or with linear attention and mean pooling."""

from functools import partial
from typing import ClassVar

import flax.linen as nn
import jax

from flatten_jax.attention import Site
from flatten_jax.models.blocks import PatchEmbed, behind_token
from flatten_jax.models.isotropic import Isotropic
from flatten_jax.models.published import WEIGHTS, Published
from flatten_jax.ops.dense import Dense
from flatten_jax.ops.initializers import position_embedding
from flatten_jax.ops.norm import LayerNorm


class DeiT(Isotropic):
    """DeiT (Touvron et al., 2021); FLatten-DeiT is the same with linear blocks and no class token.

    InLine-DeiT (Han et al., NeurIPS 2024) keeps the class token and has widths, heads and image sizes of its own: its S
    and B are narrower than DeiT's, on larger images. Agent-DeiT (Han et al., ECCV 2024) has DeiT's; in B only the first
    four blocks have agents.

    Attributes: those of `Isotropic`, and
        image_size: (height, width), each a multiple of `patch_size`.
        class_token: classify by a learned token, which not every attention takes; otherwise by the mean of the tokens.
        fc_norm: classify by the mean of the tokens, without a class token, normalised after pooling and not before, as
            timm's mean-pooled ViTs do.
        distilled: a second token behind the class token with a head of its own, `head_dist`, for a teacher's answers
            (`distill.tasks`). Logits are the mean of both heads; with num_classes=0 it is that of both tokens.
    """

    no_weight_decay: ClassVar[tuple[str, ...]] = ("pos_embed", "cls_token", "dist_token")
    heads: ClassVar[tuple[tuple[str, ...], ...]] = (("head",), ("head_dist",))

    class_token: bool = False
    fc_norm: bool = False
    distilled: bool = False

    @property
    def answer_head(self) -> bool:
        return self.distilled

    @property
    def prefix(self) -> int:
        return super().prefix + int(self.distilled)

    def levels(self, images: jax.Array, train: bool, count: int) -> list[jax.Array]:
        if self.distilled and (self.fc_norm or not self.class_token):
            given = f"class_token={self.class_token}, fc_norm={self.fc_norm}"
            raise ValueError(f"distilled=True has a token beside the class token: not with {given}")
        grid = self.grid()
        embed = PatchEmbed(self.embed_dim, self.patch_size, norm=False, dtype=self.dtype, name="patch_embed")
        x = embed(images).reshape(images.shape[0], -1, self.embed_dim)
        if self.distilled:
            x = behind_token(self, x, "dist_token")
        if self.class_token:
            x = behind_token(self, x)
        x = x + self.param("pos_embed", position_embedding, (1, x.shape[1], self.embed_dim)).astype(x.dtype)

        site = Site(grid, prefix=self.prefix, train=train)
        return self.stage(x, site, 0, "blocks_", count=count, scan=self.loops, mlp_ratio=self.mlp_ratio)

    def final_norm(self, x: jax.Array) -> jax.Array:
        return x if self.fc_norm else super().final_norm(x)

    def pool(self, x: jax.Array) -> jax.Array:
        if self.fc_norm:
            x = super().pool(x[:, int(self.class_token) :])
            return LayerNorm(epsilon=self.epsilon, dtype=self.dtype, name="fc_norm")(x)
        if self.distilled:
            return x[:, :2] if self.num_classes else (x[:, 0] + x[:, 1]) / 2
        return x[:, 0] if self.class_token else super().pool(x)

    def classify(self, x: jax.Array, train: bool) -> jax.Array | tuple[jax.Array, ...]:
        if not self.distilled:
            return super().classify(x, train)
        head = partial(Dense, self.num_classes, dtype=self.dtype)
        return head(name="head")(x[:, 0]), head(name="head_dist")(x[:, 1])


_SIZES = {
    "t": dict(embed_dim=192, num_heads=3),
    "s": dict(embed_dim=384, num_heads=6),
    "b": dict(embed_dim=768, num_heads=12),
}
_INLINE = dict(attn_type="inline", class_token=True)
_AGENT = dict(attn_type="agent", class_token=True, attn_options=nn.FrozenDict(agent_num=49))
_DEIT = "https://dl.fbaipublicfiles.com/deit/{}.pth"
FAMILY = DeiT
MODELS = {
    **{f"flatten_deit_{size}": dict(own, attn_type="focused") for size, own in _SIZES.items()},
    **{f"deit_{size}": dict(own, attn_type="softmax", class_token=True) for size, own in _SIZES.items()},
    **{
        f"deit_{size}_distilled": dict(own, attn_type="softmax", class_token=True, distilled=True)
        for size, own in _SIZES.items()
    },
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
# The names of InLine's and Agent's functions (models/build.py), and in their configs (MODEL.NAME); DeiT's, as timm's.
ALIASES = {
    **{f"deit_{long}_distilled_patch16_224": f"deit_{long[0]}_distilled" for long in ("tiny", "small", "base")},
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
    "deit_t_distilled": Published(74.5, weights=_DEIT.format("deit_tiny_distilled_patch16_224-b40b3cf7")),
    "deit_s_distilled": Published(81.2, weights=_DEIT.format("deit_small_distilled_patch16_224-649709d9")),
    "deit_b_distilled": Published(83.4, weights=_DEIT.format("deit_base_distilled_patch16_224-df68dfff")),
    "inline_deit_t": Published(74.5, weights=WEIGHTS.format("1d6b8191ad6d4114b291")),
    "inline_deit_s": Published(80.2, weights=WEIGHTS.format("2f3898b07e9247f3beb3")),
    "inline_deit_b": Published(82.3, weights=WEIGHTS.format("10bdd726d4b0435eb34e")),
    "agent_deit_t": Published(74.9, weights=WEIGHTS.format("57e0904221824ee7b7af")),
    "agent_deit_s": Published(80.5, weights=WEIGHTS.format("fdd43304372541db8ea7")),
    "agent_deit_s_448": Published(83.1, weights=WEIGHTS.format("a228f86241c445f1969b")),
    "agent_deit_b": Published(82.0, weights=WEIGHTS.format("5115f15fdd7e4ab58fbc")),
}
