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


def _soft(peak: float, batch_size: int) -> Recipe:
    """The peak is that of a batch of 1024, the other rates do not scale with the batch."""
    return Recipe(
        batch_size,
        0.1,
        source="fudan-zvg/SOFT@d3febc3, its scripts; the batch is that of 8 GPUs",
        warmup_epochs=10,
        cooldown_epochs=10,
        learning_rate=peak / 2,
        warmup_learning_rate=1e-6 * 512 / batch_size,
        min_learning_rate=5e-5 * 512 / batch_size,
        clip_norm=1.0,
        ema_decay=0.99996,
        missing="a random choice between interpolations",
    )


_efficientvit = partial(
    Recipe,
    source="mit-han-lab/efficientvit@de7d773, its configs; the batch is that of 8 GPUs",
    epochs=320,
    learning_rate=1e-3,
    warmup_learning_rate=0.0,
    min_learning_rate=0.0,
    clip_norm=2.0,
    ema_decay=0.9998,
    weight_decay=0.1,
    missing="binary cross-entropy, weaker RandAugment, mixup and cutmix, pictures of 128 to 224 px, interpolations at "
    "random, drop-path that grows with training, BatchNorm statistics estimated again",
)
_care = partial(
    Recipe,
    1536,
    0.1,
    source="zhouyuan888888/CARE-Transformer@400bf94, its script",
    cooldown_epochs=10,
    learning_rate=2.5e-3 / 3,
    warmup_learning_rate=1e-6 / 3,
    min_learning_rate=1e-5 / 3,
    missing="distillation: half of the loss is dist_head's, with the labels of a RegNetY-16GF",
)
# SOFT, Flowformer, CARE, EfficientViT.
_OF_SOFT = {
    **{f"{name}_{size}": _soft(1e-3, 1024) for name in ("soft", "softpp") for size in ("t", "s")},
    "soft_m": _soft(3.5e-4, 256),
    "softpp_m": _soft(4e-4, 256),
    **{f"{name}_l": _soft(3.3e-4, 256) for name in ("soft", "softpp")},
    **{f"{name}_h": _soft(2.7e-4, 256) for name in ("soft", "softpp")},
    "flowformer": Recipe(
        768,
        0.2,
        source="thuml/Flowformer@61f5d8c, Flowformer_CV/main.py and its script",
        warmup_epochs=5,
        cooldown_epochs=10,
        warmup_learning_rate=1e-6 / 1.5,
        min_learning_rate=1e-5 / 1.5,
        clip_norm=1.0,
        missing="augmentation without random erasing (--config.augment.erase_prob=0)",
    ),
    "care_s0": _care(),
    "care_s1": _care(),
    "care_s2": _care(),
    "efficientvit_b0": _efficientvit(1024, 0.05, resize_ratio=1 / 0.95, source="not public: these are B1's settings"),
    "efficientvit_b1": _efficientvit(1024, 0.05, resize_ratio=1 / 0.95),
    "efficientvit_b2": _efficientvit(1024, 0.05, resize_ratio=1.0),
    "efficientvit_b3": _efficientvit(1024, 0.1, resize_ratio=1.0),
}
RECIPES: dict[str, Recipe] = {
    **{f"flatten_{name}": recipe for name, recipe in _OF_FLATTEN.items()},
    **_OF_FLATTEN,
    **_OF_SOFT,
}
