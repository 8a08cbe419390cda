"""The published recipes, as data: model -> how it was trained. `configs/published.py` makes configs of them."""

from functools import partial
from typing import NamedTuple


class Recipe(NamedTuple):
    """How a model is trained on ImageNet-1k.

    Learning rates are for a batch of 512 and scale with the batch size. Augmentation, AdamW's moments and the cosine
    schedule are the same for all, see `configs/base.py`.

    Attributes:
        batch_size: over all devices.
        drop_path: stochastic-depth rate of the last block.
        source: where these numbers are written.
        epochs, warmup_epochs, cooldown_epochs: the last at the minimum learning rate, after `epochs`.
        learning_rate, warmup_learning_rate, min_learning_rate: the peak, the start and the end.
        clip_norm: largest norm of a gradient; 0: any.
        ema_decay: of the moving average of the parameters; 0: there is none.
        weight_decay: AdamW's.
        resize_ratio: for evaluation both sides are resized to this times the model's, before the central crop.
        missing: what the original training has besides, and this one has not.
    """

    batch_size: int
    drop_path: float
    source: str
    epochs: int = 300
    warmup_epochs: int = 20
    cooldown_epochs: int = 0
    learning_rate: float = 5e-4
    warmup_learning_rate: float = 1e-6
    min_learning_rate: float = 1e-5
    clip_norm: float = 0.0
    ema_decay: float = 0.0
    weight_decay: float = 0.05
    resize_ratio: float = 256 / 224
    missing: str = ""


# Where a number differs between the paper and the release it is the release's.
_RELEASE = "LeapLabTHU/FLatten-Transformer@abdb115, cfgs/flatten_{}_*.yaml"
_swin = partial(
    Recipe,
    source=_RELEASE.format("swin") + " and the defaults of config.py",
    warmup_learning_rate=5e-7,
    min_learning_rate=5e-6,
    clip_norm=5.0,
)
_deit = partial(_swin, 1024, 0.1, source="not public: these are the FLatten release's Swin settings")
_pvt = partial(Recipe, source=_RELEASE.format("pvt"), warmup_epochs=5, cooldown_epochs=10)
_cswin = partial(
    Recipe,
    source=_RELEASE.format("cswin") + " and the commands of README.md",
    cooldown_epochs=10,
    ema_decay=0.99984,
)
# By the name of the backbone: softmax attention is trained by the recipe of what it is compared with.
_OF_FLATTEN = {
    "deit_t": _deit(),
    "deit_s": _deit(),
    "deit_b": _deit(),
    "pvt_t": _pvt(1024, 0.1),
    "pvt_s": _pvt(512, 0.1),
    "pvt_m": _pvt(512, 0.3, clip_norm=1.0),
    "pvt_l": _pvt(256, 0.3, clip_norm=1.0),
    "pvt_v2_b0": _pvt(1024, 0.1),
    "pvt_v2_b1": _pvt(1024, 0.1),
    "pvt_v2_b2": _pvt(1024, 0.1),
    "pvt_v2_b3": _pvt(1024, 0.3, clip_norm=1.0),
    "pvt_v2_b4": _pvt(512, 0.3, clip_norm=1.0),
    "swin_t": _swin(1024, 0.2),
    "swin_s": _swin(1024, 0.3),
    "swin_b": _swin(512, 0.5),
    "swin_b_384": _swin(  # fine-tuned from swin_b; evaluated at 384 x 384 without a crop
        256,
        0.5,
        epochs=30,
        warmup_epochs=5,
        learning_rate=2e-5,
        warmup_learning_rate=2e-8,
        min_learning_rate=2e-7,
        weight_decay=1e-8,
        resize_ratio=1.0,
    ),
    "cswin_t": _cswin(2048, 0.2),
    "cswin_s": _cswin(1024, 0.4),
    "cswin_b": _cswin(512, 0.5, ema_decay=0.99982, weight_decay=0.1),
    "cswin_b_384": _cswin(  # fine-tuned from cswin_b
        256,
        0.7,
        epochs=20,
        warmup_epochs=0,
        learning_rate=5e-6,
        warmup_learning_rate=5e-6,
        min_learning_rate=5e-7,
        ema_decay=0.99982,
        weight_decay=1e-8,
    ),
}
_SHORT = "pictures are evaluated with their aspect: the shorter side is resized"
# The original's 4e-3 is for its batch of 4096.
_convnext = partial(
    Recipe,
    4096,
    source="facebookresearch/ConvNeXt, TRAINING.md and main.py",
    warmup_learning_rate=0.0,
    min_learning_rate=1e-6 / 8,
    ema_decay=0.9999,
    missing=_SHORT,
)
_isotropic = partial(_convnext, source="that of ConvNeXt; the drop-path is from memory")
_hornet = partial(_convnext, source="raoyongming/HorNet@ac9e210, README.md, and that of ConvNeXt")
# Peak 2.5e-4 (CvT-13) and 1.25e-4 (CvT-21) on a GPU of 256 and 128 pictures, times the number of GPUs; the rest is not.
_cvt = partial(
    Recipe,
    batch_size=2048,
    drop_path=0.1,
    source="microsoft/CvT@56984ed, its configs; the batch is that of the paper",
    warmup_epochs=5,
    cooldown_epochs=10,
    warmup_learning_rate=1e-6 / 4,
    min_learning_rate=1e-5 / 4,
    missing=_SHORT,
)
_cvt_384 = partial(_cvt, source="that of 224 px; the one of 384 px is not at hand", resize_ratio=1.0, missing="")
_cvt_21 = dict(weight_decay=0.1, missing=f"repeated augmentation; {_SHORT}")
_sret = partial(
    Recipe,
    1024,
    0.1,
    source="szq0214/SReT@c16fe12, README.md; else the defaults of DeiT",
    warmup_epochs=30,
    cooldown_epochs=10,
    learning_rate=1e-3,
    warmup_learning_rate=1e-6 / 2,
    min_learning_rate=1e-5 / 2,
)
_svt = partial(
    Recipe,
    1024,
    source="badripatro/svt, README.md; batch, warm-up and the lower rates are not at hand, these are DeiT's",
    epochs=310,
    warmup_epochs=5,
    warmup_learning_rate=1e-6 / 2,
    min_learning_rate=1e-5 / 2,
    missing="labels of 7 x 7 tokens from an external set, repeated augmentation",
)
# ConvNeXt, HorNet, CvT, SReT, SVT.
_OF_CONVNEXT = {
    "convnext_t": _convnext(0.1),
    "convnext_s": _convnext(0.4),
    "convnext_b": _convnext(0.5),
    "convnext_l": _convnext(0.5),
    "convnext_isotropic_s": _isotropic(0.1),
    "convnext_isotropic_b": _isotropic(0.2),
    "hornet_t": _hornet(0.2, clip_norm=100.0),
    "hornet_s": _hornet(0.4, clip_norm=5.0),
    "hornet_b": _hornet(0.5, clip_norm=5.0),
    "hornet_t_gf": _hornet(0.2, clip_norm=1.0),
    "hornet_s_gf": _hornet(0.4, clip_norm=1.0, missing=f"RandAugment of magnitude 12; {_SHORT}"),
    "hornet_b_gf": _hornet(0.5, clip_norm=1.0, missing=f"RandAugment of magnitude 15; {_SHORT}"),
    "cvt_13": _cvt(),
    "cvt_21": _cvt(**_cvt_21),
    "cvt_13_384": _cvt_384(),
    "cvt_21_384": _cvt_384(weight_decay=0.1, missing="repeated augmentation"),
    "cvt_w24": _cvt_384(drop_path=0.3, weight_decay=0.1, missing="pretraining on ImageNet-22k, fine-tuning from it"),
    **{
        f"sret_{size}{sliced}": _sret(
            missing="repeated augmentation" + ("" if sliced else ", a permutation drawn anew in every step")
        )
        for size in ("t", "lt", "s")
        for sliced in ("", "_wo_slice")
    },
    "svt_h_s": _svt(0.1),
    "svt_h_b": _svt(0.1),
    "svt_h_l": _svt(0.3, clip_norm=1.0),
}
RECIPES: dict[str, Recipe] = {
    **{f"flatten_{name}": recipe for name, recipe in _OF_FLATTEN.items()},
    **_OF_FLATTEN,
    **_OF_CONVNEXT,
}
