"""Names of models: settings, the release's names for them, and what was published about each."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from flatten_jax.models.backbone import Backbone
from flatten_jax.models.cswin import CSwin
from flatten_jax.models.deit import DeiT
from flatten_jax.models.pvt import PVT
from flatten_jax.models.pvt_v2 import PVTv2
from flatten_jax.models.swin import Swin


@dataclasses.dataclass(frozen=True)
class Entry:
    """A listed model: `family(**settings)`."""

    family: type[Backbone]
    settings: Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Published:
    """ImageNet-1k top-1 accuracy in percent that others report for a model; None where they do not.

    Attributes:
        paper: in the tables of the FLatten paper, which for softmax models repeat those of the original papers.
        release: printed by the release, in its log excerpts or in its table of weights.
        weights: where the release's weights are.
        note: how the model that was measured differs from the one here.
    """

    paper: float | None = None
    release: float | None = None
    weights: str | None = None
    note: str = ""


_DEIT = {
    "t": dict(embed_dim=192, num_heads=3),
    "s": dict(embed_dim=384, num_heads=6),
    "b": dict(embed_dim=768, num_heads=12),
}
_PVT = {
    "t": dict(depths=(2, 2, 2, 2)),
    "s": dict(depths=(3, 4, 6, 3)),
    "m": dict(depths=(3, 4, 18, 3)),
    "l": dict(depths=(3, 8, 27, 3)),
}
_PVT_V2 = {
    "b0": dict(depths=(2, 2, 2, 2), embed_dims=(32, 64, 160, 256)),
    "b1": dict(depths=(2, 2, 2, 2)),
    "b2": dict(depths=(3, 4, 6, 3)),
    "b3": dict(depths=(3, 4, 18, 3)),
    "b4": dict(depths=(3, 8, 27, 3)),
    "b5": dict(depths=(3, 6, 40, 3), mlp_ratios=(4, 4, 4, 4)),
}
_SWIN_BASE = dict(embed_dim=128, depths=(2, 2, 18, 2), num_heads=(4, 8, 16, 32))
_SWIN = {
    "t": dict(embed_dim=96, depths=(2, 2, 6, 2), num_heads=(3, 6, 12, 24)),
    "s": dict(embed_dim=96, depths=(2, 2, 18, 2), num_heads=(3, 6, 12, 24)),
    "b": _SWIN_BASE,
    "b_384": dict(_SWIN_BASE, image_size=(384, 384)),
}
# The release's depths, also for softmax: they are not those of the original CSwin.
_CSWIN_BASE = dict(embed_dim=96, depths=(3, 6, 29, 2), num_heads=(4, 8, 16, 32))
_CSWIN = {
    "t": dict(embed_dim=64, depths=(2, 4, 18, 1), num_heads=(2, 4, 8, 16)),
    "s": dict(embed_dim=64, depths=(2, 4, 32, 2), num_heads=(2, 4, 8, 16)),
    "b": _CSWIN_BASE,
    "b_384": dict(_CSWIN_BASE, image_size=(384, 384)),
}


def _family(name: str, cls: type[Backbone], sizes: dict[str, dict], linear: dict, softmax: dict) -> dict[str, Entry]:
    return {
        **{f"flatten_{name}_{size}": Entry(cls, {**settings, **linear}) for size, settings in sizes.items()},
        **{f"{name}_{size}": Entry(cls, {**settings, **softmax}) for size, settings in sizes.items()},
    }


MODELS: dict[str, Entry] = {
    **_family("deit", DeiT, _DEIT, dict(attn_type="L"), dict(attn_type="S", class_token=True)),
    **_family("pvt", PVT, _PVT, dict(attn_type="LLLL"), dict(attn_type="SSSS")),
    **_family("pvt_v2", PVTv2, _PVT_V2, dict(attn_type="LLLL"), dict(attn_type="SSSS")),
    **_family("swin", Swin, _SWIN, dict(attn_type="LLSS"), dict(attn_type="SSSS")),
    **_family("cswin", CSwin, _CSWIN, dict(attn_type="LLSS"), dict(attn_type="SSSS")),
}

# The release's names: of its functions (models/build.py) and in its configs (MODEL.NAME).
ALIASES: dict[str, str] = {
    "flatten_pvt_tiny": "flatten_pvt_t",
    "flatten_pvt_small": "flatten_pvt_s",
    "flatten_pvt_medium": "flatten_pvt_m",
    "flatten_pvt_large": "flatten_pvt_l",
    "flatten_swin_tiny_patch4_224": "flatten_swin_t",
    "flatten_swin_small_patch4_224": "flatten_swin_s",
    "flatten_swin_base_patch4_224": "flatten_swin_b",
    "flatten_swin_base_patch4_384_finetune": "flatten_swin_b_384",
    "FLatten_CSWin_64_24181_tiny_224": "flatten_cswin_t",
    "FLatten_CSWin_64_24322_small_224": "flatten_cswin_s",
    "FLatten_CSWin_96_36292_base_224": "flatten_cswin_b",
    "FLatten_CSWin_96_36292_base_384": "flatten_cswin_b_384",
    "FLatten_CSWin_tiny": "flatten_cswin_t",
    "FLatten_CSWin_small": "flatten_cswin_s",
    "FLatten_CSWin_base": "flatten_cswin_b",
    "FLatten_CSWin_base_384": "flatten_cswin_b_384",
}

_CLOUD = "https://cloud.tsinghua.edu.cn/f/{}/?dl=1"
_PVT_NOTE = "measured with a class token"
_CSWIN_NOTE = "measured with the original CSwin's depths"

PUBLISHED: dict[str, Published] = {
    "flatten_deit_t": Published(74.1),
    "flatten_pvt_t": Published(77.8, 77.758, _CLOUD.format("3ab1d773f19d45648690")),
    "flatten_pvt_s": Published(81.7),
    "flatten_pvt_m": Published(83.0),
    "flatten_pvt_l": Published(83.4),
    "flatten_pvt_v2_b0": Published(71.1, 71.098, _CLOUD.format("5d1f01532b104da28e7b")),
    "flatten_pvt_v2_b1": Published(79.5),
    "flatten_pvt_v2_b2": Published(82.5),
    "flatten_pvt_v2_b3": Published(83.7),
    "flatten_pvt_v2_b4": Published(84.0),
    "flatten_swin_t": Published(82.1, 82.106, _CLOUD.format("e1518e76703e4e57a7f2")),
    "flatten_swin_s": Published(83.5, 83.5, _CLOUD.format("94188e52af354bf4a88b")),
    "flatten_swin_b": Published(83.8, 83.8, _CLOUD.format("7a9e5186bad04e7fb3a9")),
    "flatten_swin_b_384": Published(85.0, 85.0, _CLOUD.format("0d0330cf2e5249f1abb6")),
    "flatten_cswin_t": Published(83.1, 83.130, _CLOUD.format("48ba765ba8b0451d9d5a")),
    "flatten_cswin_s": Published(83.8),
    "flatten_cswin_b": Published(84.5),
    "flatten_cswin_b_384": Published(85.5),
    "deit_t": Published(72.2),
    "pvt_t": Published(75.1, note=_PVT_NOTE),
    "pvt_s": Published(79.8, note=_PVT_NOTE),
    "pvt_v2_b1": Published(78.7),
    "pvt_v2_b2": Published(82.0),
    "swin_t": Published(81.3),
    "swin_s": Published(83.0),
    "swin_b": Published(83.5),
    "cswin_t": Published(82.7, note=_CSWIN_NOTE),
    "cswin_s": Published(83.6, note=_CSWIN_NOTE),
    "cswin_b": Published(84.2, note=_CSWIN_NOTE),
}
