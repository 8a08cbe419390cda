"""Swin as in the FLatten release: linear stages with large windows, softmax stages with small ones."""

from collections.abc import Mapping
from functools import partial
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from flatten_jax.attention import Site, takes_bias
from flatten_jax.hosts import WindowAttention
from flatten_jax.hosts.grids import pad_to_windows
from flatten_jax.models.blocks import PatchEmbed
from flatten_jax.models.published import WEIGHTS, Published
from flatten_jax.models.staged import Doubling, Layered
from flatten_jax.ops.dense import Dense
from flatten_jax.ops.norm import LayerNorm


class Swin(Layered, Doubling):
    """Swin (Liu et al., 2021) in the release's form, which is InLine's, Agent's and PolaFormer's too.

    Any image_size: images, windows and odd grids are padded with zeros at the right and the bottom, as in Swin's
    detection code.

    Attributes: those of `Backbone`, and
        attn_type: an attention for each stage, see `attention.pattern`.
        embed_dim, depths, num_heads, mlp_ratio: the architecture; the width doubles from stage to stage.
        window_size: of linear blocks, clipped to the grid of the stage on each axis; 0: the whole grid, which is what
            the release's 56 at 224 px and 96 at 384 px come to.
        softmax_window_size: of softmax blocks, clipped likewise; 0: as in the release, 7 for a `window_size` up to 56
            and 12 above; where that is 0 too, a 32nd of the shorter side of the image and at least 7, which is 7 at
            224 px, 9 at 288 px and 12 at 384 px, and needs no padding where the image is square and a multiple of 32.
    """

    pads: ClassVar[bool] = True
    no_weight_decay: ClassVar[tuple[str, ...]] = ("relative_position_bias_table",)
    epsilon: ClassVar[float] = 1e-5

    only_with: ClassVar[Mapping[str, bool]] = {"softmax_window_size": True}

    attn_type: str = "focused,focused,softmax,softmax"
    depths: tuple[int, ...] = (2, 2, 6, 2)
    num_heads: tuple[int, ...] = (3, 6, 12, 24)
    mlp_ratio: float = 4.0
    window_size: int = 0
    softmax_window_size: int = 0

    def stem(self, images: jax.Array, train: bool) -> jax.Array:
        embed = PatchEmbed(self.embed_dim, 4, dtype=self.dtype, name="patch_embed")
        return embed(pad_to_windows(images, (4, 4)))

    @nn.nowrap
    def blocks(self, x: jax.Array, i: int, train: bool) -> jax.Array:
        return self.stage(x, Site(x.shape[1:3], train=train), i, "blocks_", mlp_ratio=self.mlp_ratio)[-1]

    @nn.nowrap
    def downsample(self, x: jax.Array, i: int, train: bool) -> jax.Array:
        return PatchMerging(self.epsilon, self.dtype, name="downsample")(x)

    def host(self, i: int, j: int, attention: str, options: dict[str, Any]) -> partial[nn.Module]:
        """Every second block's windows are shifted."""
        return partial(
            WindowAttention,
            self.num_heads[i],
            window_size=self._windows()[takes_bias(attention)],
            shifted=j % 2 == 1,
            attn_type=attention,
            options=options,
            dtype=self.dtype,
        )

    def _windows(self) -> tuple[int, int]:
        """Windows of linear and of softmax blocks."""
        if self.window_size < 0 or self.softmax_window_size < 0:
            raise ValueError(
                f"window_size={self.window_size} and softmax_window_size={self.softmax_window_size} must be 0 or more"
            )
        softmax = max(7, min(self.image_size) // 32)
        if self.window_size:
            softmax = 7 if self.window_size <= 56 else 12
        return self.window_size or max(self.image_size), self.softmax_window_size or softmax


class PatchMerging(nn.Module):
    """2 x 2 neighbours side by side, normalised, and reduced to twice the width."""

    epsilon: float
    dtype: jnp.dtype | None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = pad_to_windows(x, (2, 2))
        batch, height, width, channels = x.shape
        # The release's order: down within a column first, then the next column.
        x = x.reshape(batch, height // 2, 2, width // 2, 2, channels).transpose(0, 1, 3, 4, 2, 5)
        x = x.reshape(batch, height // 2, width // 2, 4 * channels)
        x = LayerNorm(epsilon=self.epsilon, dtype=self.dtype, name="norm")(x)
        return Dense(2 * channels, use_bias=False, dtype=self.dtype, name="reduction")(x)


_BASE = dict(embed_dim=128, depths=(2, 2, 18, 2), num_heads=(4, 8, 16, 32))
_SIZES = {
    "t": dict(embed_dim=96, depths=(2, 2, 6, 2), num_heads=(3, 6, 12, 24)),
    "s": dict(embed_dim=96, depths=(2, 2, 18, 2), num_heads=(3, 6, 12, 24)),
    "b": _BASE,
    "b_384": dict(_BASE, image_size=(384, 384)),
}
_AGENT = dict(attn_options=nn.FrozenDict(agent_num=(9, 16, 49, 49)))
FAMILY = Swin
MODELS = {
    **{f"flatten_swin_{size}": dict(own, attn_type="focused,focused,softmax,softmax") for size, own in _SIZES.items()},
    **{f"swin_{size}": dict(own, attn_type="softmax") for size, own in _SIZES.items()},
    "inline_swin_t": dict(_SIZES["t"], attn_type="inline,inline,inline,softmax"),
    "inline_swin_s": dict(_SIZES["s"], attn_type="inline,inline,softmax,softmax"),
    "inline_swin_b": dict(_SIZES["b"], attn_type="inline,inline,inline*2+softmax,softmax"),
    "inline_swin_b_384": dict(_SIZES["b_384"], attn_type="inline,inline,inline*2+softmax,softmax"),
    "agent_swin_t": dict(_SIZES["t"], **_AGENT, attn_type="agent,agent,agent,softmax"),
    "agent_swin_s": dict(_SIZES["s"], **_AGENT, attn_type="agent,agent,softmax,softmax"),
    "agent_swin_s_288": dict(_SIZES["s"], **_AGENT, attn_type="agent,agent,softmax,softmax", image_size=(288, 288)),
    "agent_swin_b": dict(_SIZES["b"], **_AGENT, attn_type="agent,agent,agent*2+softmax,softmax"),
    "agent_swin_b_384": dict(_SIZES["b_384"], **_AGENT, attn_type="agent,agent,agent*2+softmax,softmax"),
    **{
        f"pola_swin_{size}": dict(own, attn_type="polaformer,polaformer,softmax,softmax")
        for size, own in _SIZES.items()
    },
}
# The originals' names: of FLatten's functions (models/build.py), and in the configs (MODEL.NAME).
ALIASES = {
    **{
        f"{paper}_swin_{long}_patch4_224": f"{paper}_swin_{long[0]}"
        for paper in ("flatten", "pola")
        for long in ("tiny", "small", "base")
    },
    **{f"{paper}_swin_base_patch4_384_finetune": f"{paper}_swin_b_384" for paper in ("flatten", "pola")},
    **{
        f"{paper}_swin_{long}": f"{paper}_swin_{long[0]}"
        for paper in ("inline", "agent")
        for long in ("tiny", "small", "base")
    },
    **{f"{paper}_swin_base_384": f"{paper}_swin_b_384" for paper in ("inline", "agent")},
    "agent_swin_small_288": "agent_swin_s_288",
}
PUBLISHED = {
    "flatten_swin_t": Published(82.1, 82.106, WEIGHTS.format("e1518e76703e4e57a7f2")),
    "flatten_swin_s": Published(83.5, 83.5, WEIGHTS.format("94188e52af354bf4a88b")),
    "flatten_swin_b": Published(83.8, 83.8, WEIGHTS.format("7a9e5186bad04e7fb3a9")),
    "flatten_swin_b_384": Published(85.0, 85.0, WEIGHTS.format("0d0330cf2e5249f1abb6")),
    "swin_t": Published(81.3),
    "swin_s": Published(83.0),
    "swin_b": Published(83.5),
    "inline_swin_t": Published(82.4, weights=WEIGHTS.format("32810869fcc34410966b")),
    "inline_swin_s": Published(83.6, weights=WEIGHTS.format("e9657fd247c04c7cb1a1")),
    "inline_swin_b": Published(84.1, weights=WEIGHTS.format("bf23564bb64c420aafe1")),
    "agent_swin_t": Published(82.6, weights=WEIGHTS.format("a2ddc1190c224f768a41")),
    "agent_swin_s": Published(83.7, weights=WEIGHTS.format("f607172c9fea4d6e99bb")),
    "agent_swin_s_288": Published(84.1, weights=WEIGHTS.format("09760394e93b4046a25e")),
    "agent_swin_b": Published(84.0, weights=WEIGHTS.format("4fcd2d0114bb490483c3")),
    "agent_swin_b_384": Published(84.9, weights=WEIGHTS.format("bb84ee9058954706a557")),
    "pola_swin_t": Published(82.6),
    "pola_swin_s": Published(83.6),
    "pola_swin_b": Published(83.8),
}
