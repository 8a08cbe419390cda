"""Recipes of the backbones that were made for a linear attention."""

from functools import partial

from configs.recipes.recipe import Recipe


def _ravlt(drop_path: float, code: str) -> Recipe:
    """Only the peak scales with the batch there."""
    return Recipe(
        1024,
        drop_path,
        source=f"the defaults of {code}; the batch is that of the MHLA paper, which follows them",
        warmup_epochs=5,
        cooldown_epochs=10,
        warmup_learning_rate=1e-6 / 2,
        min_learning_rate=1e-5 / 2,
        ema_decay=0.99996**2,
        resize="short",
        repeats=3,
        missing="learning rates by epochs instead of steps",
    )


def _mila(batch_size: int, drop_path: float, mesa: float) -> Recipe:
    return Recipe(
        batch_size,
        drop_path,
        source="LeapLabTHU/MLLA@66b6d29, its configs and README.md",
        warmup_learning_rate=5e-7,
        min_learning_rate=5e-6,
        clip_norm=5.0,
        ema_decay=0.9996 ** (batch_size / 4096),
        resize="short",
        mesa=mesa,
    )


# The original's 4e-3 is for its batch of 4096.
_l2vit = partial(
    Recipe,
    batch_size=4096,
    source="ChuanyangZheng/L2ViT@fad0341, its README.md and configs",
    warmup_learning_rate=0.0,
    min_learning_rate=1e-6 / 8,
    ema_decay=0.9999,
    resize="short",
)
_vvt = partial(
    Recipe,
    1024,
    source="OpenNLPLab/Vicinity-Vision-Transformer@2c49e0f, its configs; the batch is not public",
    warmup_epochs=5,
    cooldown_epochs=10,
    warmup_learning_rate=1e-6 / 2,  # only the peak scales with the batch there
    min_learning_rate=1e-5 / 2,
    resize="short",
    repeats=3,
)
# RAVLT, MAViT, MILA, L2ViT, VVT.
_OF_RAVLT = {
    **{
        f"{family}_{size}": _ravlt(drop_path, code)
        for family, code in {"ravlt": "qhfan/RALA@a86314f", "mavit": "qhfan/MALA@7114e63"}.items()
        for size, drop_path in {"t": 0.1, "s": 0.15, "b": 0.4, "l": 0.55}.items()
    },
    "mila_t": _mila(1024, 0.2, 1.0),
    "mila_s": _mila(512, 0.3, 1.5),
    "mila_b": _mila(512, 0.5, 2.0),
    "l2vit_t": _l2vit(drop_path=0.2, source="that of l2vit_b; the drop-path is not public, this is Swin's"),
    "l2vit_s": _l2vit(drop_path=0.3, source="that of l2vit_b; the drop-path is not public, this is Swin's"),
    "l2vit_b": _l2vit(drop_path=0.3),
    "l2vit_b_384": _l2vit(  # fine-tuned from 22k; evaluated at 384 x 384 without a crop
        drop_path=0.2,
        batch_size=1024,
        epochs=30,
        warmup_epochs=5,
        learning_rate=4e-5 / 2,
        warmup_learning_rate=4e-8 / 2,
        min_learning_rate=4e-7 / 2,
        weight_decay=1e-8,
        resize_ratio=1.0,
        resize="squash",
        source="that of l2vit_b; warm-up and averaging of the fine-tuning are not public, and assumed",
        missing="training on ImageNet-22k before",
    ),
    "vvt_t": _vvt(0.1),
    **{f"vvt_{size}": _vvt(0.3, clip_norm=1.0) for size in ("s", "m", "l")},
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
        resize="short",
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
    resize="short",
    augment={"mixup": 0.1, "cutmix": 0.1},
    missing="binary cross-entropy, weaker RandAugment, pictures of 128 to 224 px, interpolations at random, drop-path "
    "that grows with training, BatchNorm statistics estimated again",
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
    resize="short",
    missing="a teacher for dist_head, a RegNetY-16GF, which is not in this library; another: "
    "--config.distill.kind=hard --config.distill.teacher=PATH",
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
        resize="short",
        augment={"erase_prob": 0.0},
    ),
    "care_s0": _care(),
    "care_s1": _care(),
    "care_s2": _care(),
    "efficientvit_b0": _efficientvit(1024, 0.05, resize_ratio=1 / 0.95, source="not public: these are B1's settings"),
    "efficientvit_b1": _efficientvit(1024, 0.05, resize_ratio=1 / 0.95),
    "efficientvit_b2": _efficientvit(1024, 0.05, resize_ratio=1.0),
    "efficientvit_b3": _efficientvit(1024, 0.1, resize_ratio=1.0, augment={"mixup": 0.3, "cutmix": 0.3}),
}

_vig = partial(
    Recipe,
    1024,
    source="hustvl/ViG@dfb9d32, its configs and README.md",
    warmup_learning_rate=5e-7,
    min_learning_rate=5e-6,
    clip_norm=5.0,
    ema_decay=0.9999,
    resize="short",
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
    resize="short",
    repeats=3,
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
    resize="short",
    augment={"mixup": 0.2},
)
_hyena = partial(_of_deit, 0.1, source="the defaults of Itamarzimm/HyenaND@869480c, DeiT's; no ImageNet run known")
_skipat = partial(
    _of_deit,
    0.1,
    source="not public: the paper names DeiT's recipe",
    resize_ratio=1 / 0.9,
    mean=(0.5, 0.5, 0.5),
    std=(0.5, 0.5, 0.5),
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

LINEAR: dict[str, Recipe] = {**_OF_RAVLT, **_OF_SOFT, **_OF_VIG}
