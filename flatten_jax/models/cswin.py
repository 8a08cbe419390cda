"""CSwin as in the FLatten release: linear stages over the whole grid, softmax stages in cross-shaped stripes."""

from functools import partial
from typing import Any, ClassVar

import flax.linen as nn
import jax

from flatten_jax.attention import Site, takes_bias
from flatten_jax.hosts import StripeAttention
from flatten_jax.models.blocks import PatchEmbed
from flatten_jax.models.published import WEIGHTS, Published
from flatten_jax.models.staged import Doubling
from flatten_jax.ops.convolution import Conv
from flatten_jax.ops.norm import LayerNorm


class CSwin(Doubling):
    """CSwin (Dong et al., 2022) in the release's form, which is InLine's and Agent's too, but for the depths of S.

    Any image_size: the convolutions between the stages pad, and a grid that stripes do not divide is padded with zeros.
    The last stage always attends to its whole grid, in one branch.

    Attributes: those of `Backbone`, and
        attn_type: an attention for each stage, see `attention.pattern`.
        embed_dim, depths, num_heads, mlp_ratio: the architecture; the width doubles from stage to stage.
        split_size: width of the stripes of softmax blocks, one entry per stage; 0: a 32nd of the shorter side of the
            image and at least 7, which is 7 at 224 px and 12 at 384 px as in the release.
        la_split_size: side of the window of linear blocks, per stage, as "56-28-14-7"; "": the whole grid, which is
            what the release's values come to.
    """

    no_weight_decay: ClassVar[tuple[str, ...]] = ("pos_embed", "cls_token")
    epsilon: ClassVar[float] = 1e-5
    level_name: ClassVar[str] = "stage{1}"

    attn_type: str = "focused,focused,softmax,softmax"
    embed_dim: int = 64
    depths: tuple[int, ...] = (2, 4, 18, 1)
    num_heads: tuple[int, ...] = (2, 4, 8, 16)
    mlp_ratio: float = 4.0
    split_size: tuple[int, ...] = (1, 2, 0, 0)
    la_split_size: str = ""

    def idle_options(self) -> set[str]:
        # The last stage has neither stripes nor windows.
        return super().idle_options() | {
            option
            for option, scores in (("split_size", True), ("la_split_size", False))
            if scores not in {takes_bias(name) for names in self.attentions()[:-1] for name in names}
        }

    def levels(self, images: jax.Array, train: bool, count: int) -> list[jax.Array]:
        x, levels = images, []
        for i in range(count):
            if i == 0:
                x = Conv(self.embed_dim, 7, 4, padding=2, dtype=self.dtype, name="stage1_conv_embed_0")(x)
                x = LayerNorm(epsilon=1e-5, dtype=self.dtype, name="stage1_conv_embed_2")(x)
            else:
                merge = partial(PatchEmbed, patch_size=3, stride=2, padding=1, conv_name="conv", dtype=self.dtype)
                x = merge(self.embed_dim * 2**i, name=f"merge{i}")(x)
            site = Site(x.shape[1:3], train=train)
            x = self.stage(x, site, i, f"stage{i + 1}_", mlp_ratio=self.mlp_ratio, own_scope=False)[-1]
            levels.append(x)
        return levels

    def host(self, i: int, j: int, attention: str, options: dict[str, Any]) -> partial[nn.Module]:
        """Blocks with scores have two branches of stripes, but for those of the last stage."""
        striped, stripes, windows = takes_bias(attention) and i < len(self.depths) - 1, self._stripes(), self._windows()
        return partial(
            StripeAttention,
            self.num_heads[i],
            split_size=stripes[i] if striped else windows[i],
            branches=2 if striped else 1,
            epsilon=self.epsilon,
            attn_type=attention,
            options=options,
            dtype=self.dtype,
        )

    def _stripes(self) -> list[int]:
        if len(self.split_size) != len(self.depths) or min(self.split_size) < 0:
            raise ValueError(f"split_size={self.split_size} needs a width for each of {len(self.depths)} stages")
        return [size or max(7, min(self.image_size) // 32) for size in self.split_size]

    def _windows(self) -> list[int]:
        sizes = self.la_split_size.split("-") if self.la_split_size else ["0"] * len(self.depths)
        if len(sizes) != len(self.depths) or not all(size.isdecimal() for size in sizes):
            raise ValueError(
                f"la_split_size={self.la_split_size!r} needs a number for each of {len(self.depths)} stages, "
                "joined by '-', as in '56-28-14-7'"
            )
        return [*(int(size) for size in sizes[:-1]), 0]


# The release's depths, also for softmax: they are not those of the original CSwin.
_BASE = dict(embed_dim=96, depths=(3, 6, 29, 2), num_heads=(4, 8, 16, 32))
_SIZES = {
    "t": dict(embed_dim=64, depths=(2, 4, 18, 1), num_heads=(2, 4, 8, 16)),
    "s": dict(embed_dim=64, depths=(2, 4, 32, 2), num_heads=(2, 4, 8, 16)),
    "b": _BASE,
    "b_384": dict(_BASE, image_size=(384, 384)),
}
_DEEP = {**_SIZES, "s": dict(_SIZES["s"], depths=_BASE["depths"])}
_AGENT = dict(
    attn_type="agent,agent,softmax,softmax",
    attn_options=nn.FrozenDict(agent_num=(9, 16, 49, 49), use_dwc=False),
)
FAMILY = CSwin
MODELS = {
    **{f"flatten_cswin_{size}": dict(own, attn_type="focused,focused,softmax,softmax") for size, own in _SIZES.items()},
    **{f"cswin_{size}": dict(own, attn_type="softmax") for size, own in _SIZES.items()},
    **{f"inline_cswin_{size}": dict(own, attn_type="inline,inline,softmax,softmax") for size, own in _DEEP.items()},
    **{f"agent_cswin_{size}": dict(own, **_AGENT) for size, own in _DEEP.items()},
}
# The originals' names: of their functions (models/build.py), and in their configs (MODEL.NAME).
ALIASES = {
    "Agent_CSWin_64_24181_tiny_224": "agent_cswin_t",
    "Agent_CSWin_64_36292_small_224": "agent_cswin_s",
    "Agent_CSWin_96_36292_base_224": "agent_cswin_b",
    "Agent_CSWin_96_36292_base_384": "agent_cswin_b_384",
    **{
        f"{original}_{size}": f"{ours}_{short}"
        for original, ours in (("Agent_CSWin", "agent_cswin"), ("inline_cswin", "inline_cswin"))
        for size, short in (("tiny", "t"), ("small", "s"), ("base", "b"), ("base_384", "b_384"))
    },
    "FLatten_CSWin_64_24181_tiny_224": "flatten_cswin_t",
    "FLatten_CSWin_64_24322_small_224": "flatten_cswin_s",
    "FLatten_CSWin_96_36292_base_224": "flatten_cswin_b",
    "FLatten_CSWin_96_36292_base_384": "flatten_cswin_b_384",
    "FLatten_CSWin_tiny": "flatten_cswin_t",
    "FLatten_CSWin_small": "flatten_cswin_s",
    "FLatten_CSWin_base": "flatten_cswin_b",
    "FLatten_CSWin_base_384": "flatten_cswin_b_384",
}
_NOTE = "measured with the original CSwin's depths"
PUBLISHED = {
    "flatten_cswin_t": Published(83.1, 83.130, WEIGHTS.format("48ba765ba8b0451d9d5a")),
    "flatten_cswin_s": Published(83.8),
    "flatten_cswin_b": Published(84.5),
    "flatten_cswin_b_384": Published(85.5),
    "cswin_t": Published(82.7, note=_NOTE),
    "cswin_s": Published(83.6, note=_NOTE),
    "cswin_b": Published(84.2, note=_NOTE),
    "inline_cswin_t": Published(83.2, weights=WEIGHTS.format("49fa2ecc543647c4b970")),
    "inline_cswin_s": Published(83.8, weights=WEIGHTS.format("59f4e65f776f4052b93c")),
    "inline_cswin_b": Published(84.5, weights=WEIGHTS.format("91e17121df284ae38521")),
    "agent_cswin_t": Published(83.1, weights=WEIGHTS.format("8c562a74441e46d5902b")),
    "agent_cswin_s": Published(83.9, weights=WEIGHTS.format("30eb8af675bc4b7a8747")),
    "agent_cswin_b": Published(84.7, weights=WEIGHTS.format("c8035b0839b2410c8c9f")),
    "agent_cswin_b_384": Published(85.8, weights=WEIGHTS.format("1239be0df44b47719432")),
}
