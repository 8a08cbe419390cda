"""Pyramid Vision Transformer as in the FLatten release: mean pooling, an attention per stage."""

from collections.abc import Mapping
from functools import partial
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from flatten_jax.attention import Site, pattern, takes_bias
from flatten_jax.hosts import ReducedAttention
from flatten_jax.models.backbone import Backbone
from flatten_jax.models.blocks import PatchEmbed, patch_grid
from flatten_jax.models.published import WEIGHTS, Published
from flatten_jax.ops.initializers import TORCH_CONV, ConvInit, position_embedding
from flatten_jax.ops.norm import LayerNorm


class PVT(Backbone):
    """PVT (Wang et al., 2021) in the release's form. The four `pos_embed` are decayed, as there.

    Attributes: those of `Backbone`, and
        image_size: (height, width), each a multiple of 32.
        attn_type: an attention for each stage.
        embed_dims, depths, num_heads, mlp_ratios: the architecture, one entry per stage.
        sr_ratios: spatial reduction of keys and values in softmax stages.
        la_sr_ratios: the same in linear stages, a digit per stage (the release's PVT_LA_SR_RATIOS).
        unused_norm: have the release's final norm, which it never applies; InLine's and Agent's PVT have none.
    """

    only_with: ClassVar[Mapping[str, bool]] = {"sr_ratios": True, "la_sr_ratios": False}

    attn_type: str = "focused"
    embed_dims: tuple[int, ...] = (64, 128, 320, 512)
    depths: tuple[int, ...] = (2, 2, 2, 2)
    num_heads: tuple[int, ...] = (1, 2, 5, 8)
    mlp_ratios: tuple[float, ...] = (8, 8, 4, 4)
    sr_ratios: tuple[int, ...] = (8, 4, 2, 1)
    la_sr_ratios: str = "1111"
    unused_norm: bool = True

    def level_info(self) -> list[dict[str, Any]]:
        return [
            {"num_chs": channels, "reduction": 4 * 2**i, "module": f"block{i + 1}"}
            for i, channels in enumerate(self.embed_dims)
        ]

    def attentions(self) -> list[tuple[str, ...]]:
        return pattern(self.attn_type, self.depths)

    def levels(self, images: jax.Array, train: bool, count: int) -> list[jax.Array]:
        patch_grid(self.image_size, 4 * 2 ** (len(self.depths) - 1))  # said once for the image, not stage by stage
        x, levels = images, []
        for i in range(count):
            embed = PatchEmbed(self.embed_dims[i], 4 if i == 0 else 2, dtype=self.dtype, name=f"patch_embed{i + 1}")
            x = embed(x)
            pos_embed = self.param(f"pos_embed{i + 1}", position_embedding, (1, x.shape[1] * x.shape[2], x.shape[3]))
            x = x + pos_embed.astype(x.dtype).reshape(1, *x.shape[1:])
            x = self.blocks(x, i, train)
            levels.append(x)
        return levels

    def blocks(self, x: jax.Array, i: int, train: bool, conv_init: ConvInit = TORCH_CONV, **settings: Any) -> jax.Array:
        """The blocks of stage i on a map (B, height, width, C); settings: of `Block`."""
        if len(self.la_sr_ratios) != len(self.depths) or not self.la_sr_ratios.isdecimal() or "0" in self.la_sr_ratios:
            raise ValueError(f"la_sr_ratios={self.la_sr_ratios!r} needs a digit above 0 for each stage, as in '1111'")

        def host(j: int, attention: str, options: dict[str, Any]) -> Any:
            return partial(
                ReducedAttention,
                self.num_heads[i],
                attn_type=attention,
                sr_ratio=self.sr_ratios[i] if takes_bias(attention) else int(self.la_sr_ratios[i]),
                options=options,
                dtype=self.dtype,
                conv_init=conv_init,
            )

        site = Site(x.shape[1:3], train=train)
        return self.stage(x, site, i, host, f"block{i + 1}_", mlp_ratio=self.mlp_ratios[i], **settings)[-1]

    def final_norm(self, x: jax.Array) -> jax.Array:
        """None: the release makes this norm and never applies it; its weights are there to be loaded and handed on."""
        if self.unused_norm:
            LayerNorm(epsilon=self.epsilon, name="norm")(jnp.zeros((1, self.embed_dims[-1])))
        return x


_SIZES = {
    "t": dict(depths=(2, 2, 2, 2)),
    "s": dict(depths=(3, 4, 6, 3)),
    "m": dict(depths=(3, 4, 18, 3)),
    "l": dict(depths=(3, 8, 27, 3)),
}
FAMILY = PVT
MODELS = {
    **{f"flatten_pvt_{size}": dict(own, attn_type="focused") for size, own in _SIZES.items()},
    **{f"pvt_{size}": dict(own, attn_type="softmax") for size, own in _SIZES.items()},
}
# The release's names: of its functions (models/build.py), and in its configs (MODEL.NAME).
ALIASES = {
    "flatten_pvt_tiny": "flatten_pvt_t",
    "flatten_pvt_small": "flatten_pvt_s",
    "flatten_pvt_medium": "flatten_pvt_m",
    "flatten_pvt_large": "flatten_pvt_l",
}
_NOTE = "measured with a class token"
PUBLISHED = {
    "flatten_pvt_t": Published(77.8, 77.758, WEIGHTS.format("3ab1d773f19d45648690")),
    "flatten_pvt_s": Published(81.7),
    "flatten_pvt_m": Published(83.0),
    "flatten_pvt_l": Published(83.4),
    "pvt_t": Published(75.1, note=_NOTE),
    "pvt_s": Published(79.8, note=_NOTE),
}
