"""VVT (Sun et al., TPAMI 2023): PVTv2's body around vicinity attention, on the whole grid of every stage."""

from typing import ClassVar

from flatten_jax.models.published import Published
from flatten_jax.models.pvt_v2 import PVTv2


class VVT(PVTv2):
    """VVT (arXiv 2206.10552). Attributes: those of `PVTv2`; any image_size.

    `sr_ratios`, of attentions with scores, reduce no keys unless asked: the original has neither.
    """

    hallmark: ClassVar[str] = "block1.0.attn.se_fc.0.weight"

    attn_type: str = "vicinity"
    embed_dims: tuple[int, ...] = (96, 160, 320, 512)
    num_heads: tuple[int, ...] = (1, 2, 5, 8)
    mlp_ratios: tuple[float, ...] = (8, 8, 4, 4)
    sr_ratios: tuple[int, ...] = (1, 1, 1, 1)


_OPTIONS = dict(feature_reduction=2, se_reduction=1)
_SIZES = {
    "t": dict(depths=(2, 2, 2, 2)),
    "s": dict(depths=(3, 3, 9, 3)),
    "m": dict(depths=(3, 3, 27, 3)),
    "l": dict(depths=(4, 4, 36, 4), mlp_ratios=(4, 4, 4, 4)),
}
FAMILY = VVT
MODELS = {f"vvt_{size}": dict(own, attn_options=_OPTIONS) for size, own in _SIZES.items()}
ALIASES = {f"vvt_{size}": f"vvt_{size[0]}" for size in ("tiny", "small", "medium", "large")}  # of the official code
PUBLISHED = {
    "vvt_t": Published(79.2),
    "vvt_s": Published(82.6),
    "vvt_m": Published(83.8),
    "vvt_l": Published(84.1),
}
