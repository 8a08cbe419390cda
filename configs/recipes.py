"""The published recipes, as data: model -> how it was trained. `configs/published.py` makes configs of them."""

from functools import partial
from typing import NamedTuple

from flatten_jax.models.images import IMAGENET_MEAN, IMAGENET_STD


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
        resize_ratio: for evaluation pictures are resized to this times the model's size, before the central crop.
        missing: what the original training has besides, and this one has not.
        resize: "squash" both sides to it, or the "short" one.
        repeats: of a picture in an epoch (repeated augmentation).
        mean, std: of the channels.
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
    resize: str = "squash"
    repeats: int = 1
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD


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
_crossvit = partial(
    Recipe,
    4096,
    0.1,
    source="IBM/CrossViT: DeiT's main.py, the README's example on 4 nodes; batch and repetitions from memory",
    warmup_epochs=30,
    warmup_learning_rate=1e-6 / 8,
    min_learning_rate=1e-5 / 8,
    resize="short",
    repeats=3,
)
_tnt = partial(
    Recipe,
    1024,
    0.1,
    source="huawei-noah/Efficient-AI-Backbones, tnt_pytorch: the README's command, timm's train.py",
    warmup_epochs=5,
    warmup_learning_rate=1e-6 / 2,
    min_learning_rate=1e-5 / 2,
    ema_decay=0.99996,
    resize_ratio=1 / 0.9,
    resize="short",
    repeats=3,
    mean=(0.5, 0.5, 0.5),
    std=(0.5, 0.5, 0.5),
)
_msvmamba = partial(
    Recipe,
    1024,
    0.2,
    source="YuHengsss/MSVMamba@57a5ee5, configs of the branch master and the defaults of config.py",
    warmup_learning_rate=5e-7,
    min_learning_rate=5e-6,
    clip_norm=5.0,
    resize="short",
)
_stvit = partial(
    Recipe,
    1024,
    source="changsn/STViT-R, the logs of Swin-S and Swin-B; otherwise Swin's settings",
    warmup_learning_rate=5e-7,
    min_learning_rate=5e-6,
    clip_norm=5.0,
    resize="short",
)
# CrossViT, TNT, MSVMamba, STViT-R.
_OF_SCALES = {
    **{f"crossvit_{size}": _crossvit() for size in ("ti", "s", "b", "9", "15", "18")},
    **{f"crossvit_{size}_dagger": _crossvit() for size in ("9", "15", "18")},
    **{f"tnt_{size}": _tnt() for size in ("s", "b")},
    **{f"msvmamba_{size}": _msvmamba() for size in ("n", "m", "t")},
    "stvit_r_swin_t": _stvit(drop_path=0.2, source="not public: these are STViT-R's settings of Swin-S"),
    "stvit_r_swin_s": _stvit(drop_path=0.3),
    "stvit_r_swin_b": _stvit(drop_path=0.4),
}
RECIPES: dict[str, Recipe] = {
    **{f"flatten_{name}": recipe for name, recipe in _OF_FLATTEN.items()},
    **_OF_FLATTEN,
    **_OF_SCALES,
}
