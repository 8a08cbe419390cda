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

_vig = partial(
    Recipe,
    1024,
    source="hustvl/ViG@dfb9d32, its configs and README.md",
    warmup_learning_rate=5e-7,
    min_learning_rate=5e-6,
    clip_norm=5.0,
    ema_decay=0.9999,
)
# DeiT's own script and those made of it: only the peak of the learning rate scales with the batch.
_of_deit = partial(
    Recipe,
    1024,
    warmup_epochs=5,
    cooldown_epochs=10,
    warmup_learning_rate=5e-7,
    min_learning_rate=5e-6,
    ema_decay=0.99996,
    missing="repeated augmentation",
)
_xcit = partial(
    _of_deit,
    source="facebookresearch/xcit@82f5291, main.py and README.md; drop-path of S12, others' from memory of table B.1",
    epochs=400,
    resize_ratio=1.0,
)
_mhla = partial(
    Recipe,
    1024,
    0.1,
    source="the paper: epochs, batch and learning rate; else the script of DAGroup-PKU/MHLA@ccf97b2, which is for 200",
    warmup_epochs=10,
    ema_decay=0.9996,
    missing="the script's weaker mixup (--config.augment.mixup=0.2)",
)
_hyena = partial(_of_deit, 0.1, source="the defaults of Itamarzimm/HyenaND@869480c, DeiT's; no ImageNet run known")
_skipat = partial(
    _of_deit,
    0.1,
    source="not public: the paper names DeiT's recipe",
    resize_ratio=1 / 0.9,
    missing="repeated augmentation, pictures of mean and deviation 0.5",
)
# ViG, XCiT, and the DeiTs of MHLA, Hyena and SkipAt.
_OF_VIG = {
    "vig_t": _vig(0.0, learning_rate=1e-3),
    "vig_s": _vig(0.2, weight_decay=0.1),
    "vig_b": _vig(0.5, learning_rate=1e-3),
    "vig_h_t": _vig(0.2, learning_rate=8e-4),
    "vig_h_s": _vig(0.3),
    "vig_h_b": _vig(0.6),
    **{
        f"xcit_{size}_p{patch}": _xcit(drop_path)
        for size, drop_path in dict(n12=0.0, t12=0.0, s12=0.05, t24=0.05, s24=0.1, m24=0.15, l24=0.25).items()
        for patch in (16, 8)
    },
    "mhla_deit_t": _mhla(),
    "mhla_deit_s": _mhla(),
    "hyena_deit_t": _hyena(),
    "hyena_deit_s": _hyena(),
    "skipat_deit_t": _skipat(),
    "skipat_deit_s": _skipat(),
}
RECIPES: dict[str, Recipe] = {
    **{f"flatten_{name}": recipe for name, recipe in _OF_FLATTEN.items()},
    **_OF_FLATTEN,
    **_OF_VIG,
}
