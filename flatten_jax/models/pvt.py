"""Pyramid Vision Transformer as in the FLatten release: mean pooling, an attention per stage."""

from collections.abc import Mapping
from functools import partial
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from flatten_jax.attention import Site, takes_bias
from flatten_jax.hosts import ReducedAttention
from flatten_jax.models.blocks import PatchEmbed, patch_grid
from flatten_jax.models.published import WEIGHTS, Published
from flatten_jax.models.staged import Staged
from flatten_jax.ops.initializers import position_embedding
from flatten_jax.ops.norm import LayerNorm


class PVT(Staged):
    """PVT (Wang et al., 2021) in the release's form. The four `pos_embed` are decayed, as there.

    InLine's PVT (Han et al., NeurIPS 2024) has other heads, and, like Agent's (Han et al., ECCV 2024), no unused norm;
    PolaFormer's (Meng et al., ICLR 2025) is the release's. InLine's code resamples `pos_embed` while it runs at another
    size than its own; here a model is made for its image_size, and weights are resampled when they are loaded.

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

    def levels(self, images: jax.Array, train: bool, count: int) -> list[jax.Array]:
        patch_grid(self.image_size, self.stride)  # said once for the image, not stage by stage
        x, levels = images, []
        for i in range(count):
            embed = PatchEmbed(self.embed_dims[i], 4 if i == 0 else 2, dtype=self.dtype, name=f"patch_embed{i + 1}")
            x = embed(x)
            pos_embed = self.param(f"pos_embed{i + 1}", position_embedding, (1, x.shape[1] * x.shape[2], x.shape[3]))
            x = x + pos_embed.astype(x.dtype).reshape(1, *x.shape[1:])
            x = self.blocks(x, i, train)
            levels.append(x)
        return levels

    def blocks(self, x: jax.Array, i: int, train: bool, **settings: Any) -> jax.Array:
        """The blocks of stage i on a map (B, height, width, C); settings: of `Block`."""
        if len(self.la_sr_ratios) != len(self.depths) or not self.la_sr_ratios.isdecimal() or "0" in self.la_sr_ratios:
            raise ValueError(f"la_sr_ratios={self.la_sr_ratios!r} needs a digit above 0 for each stage, as in '1111'")
        site = Site(x.shape[1:3], train=train)
        return self.stage(x, site, i, f"block{i + 1}_", mlp_ratio=self.mlp_ratios[i], **settings)[-1]

    def host(self, i: int, j: int, attention: str, options: dict[str, Any]) -> partial[nn.Module]:
        return partial(
            ReducedAttention,
            self.num_heads[i],
            attn_type=attention,
            sr_ratio=self.sr_ratios[i] if takes_bias(attention) else int(self.la_sr_ratios[i]),
            options=options,
            dtype=self.dtype,
            conv_init=self.conv_init,
        )

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
_INLINE = dict(attn_type="inline", num_heads=(2, 4, 10, 16), unused_norm=False)
_AGENT = dict(attn_type="agent", unused_norm=False, attn_options=nn.FrozenDict(agent_num=(9, 16, 49, 49)))
FAMILY = PVT
MODELS = {
    **{f"flatten_pvt_{size}": dict(own, attn_type="focused") for size, own in _SIZES.items()},
    **{f"pvt_{size}": dict(own, attn_type="softmax") for size, own in _SIZES.items()},
    **{f"inline_pvt_{size}": dict(own, **_INLINE) for size, own in _SIZES.items()},
    **{f"agent_pvt_{size}": dict(own, **_AGENT) for size, own in _SIZES.items()},
    "agent_pvt_m_256": dict(_SIZES["m"], **_AGENT, image_size=(256, 256)),
    **{f"pola_pvt_{size}": dict(own, attn_type="polaformer") for size, own in _SIZES.items()},
}
# The originals' names: of their functions (models/build.py), and in their configs (MODEL.NAME).
ALIASES = {
    **{
        f"{paper}_pvt_{long}": f"{paper}_pvt_{long[0]}"
        for paper in ("flatten", "inline", "agent", "pola")
        for long in ("tiny", "small", "medium", "large")
    },
    "agent_pvt_medium_256": "agent_pvt_m_256",
}
_NOTE = "measured with a class token"
PUBLISHED = {
    "flatten_pvt_t": Published(77.8, 77.758, WEIGHTS.format("3ab1d773f19d45648690")),
    "flatten_pvt_s": Published(81.7),
    "flatten_pvt_m": Published(83.0),
    "flatten_pvt_l": Published(83.4),
    "pvt_t": Published(75.1, note=_NOTE),
    "pvt_s": Published(79.8, note=_NOTE),
    "inline_pvt_t": Published(78.2, weights=WEIGHTS.format("90ac52b1555b401eb5e6")),
    "inline_pvt_s": Published(82.0, weights=WEIGHTS.format("1ab953b2479d433080a3")),
    "inline_pvt_m": Published(83.2, weights=WEIGHTS.format("a72aec31e6084bc0a280")),
    "inline_pvt_l": Published(83.6, weights=WEIGHTS.format("efd91318ba964f01b288")),
    "agent_pvt_t": Published(78.4, weights=WEIGHTS.format("13fdf0e0a7c5498c934f")),
    "agent_pvt_s": Published(82.2, weights=WEIGHTS.format("36b8be9a8863456685a3")),
    "agent_pvt_m": Published(83.4, weights=WEIGHTS.format("4d00ecacf18b45f9b88c")),
    "agent_pvt_m_256": Published(83.8, weights=WEIGHTS.format("654df734121643b19c52")),
    "agent_pvt_l": Published(83.7, weights=WEIGHTS.format("040cfe0cfbbe4762ad09")),
    "pola_pvt_t": Published(78.8),
    "pola_pvt_s": Published(81.9),
}
