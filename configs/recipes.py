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
        resize_ratio: for evaluation both sides are resized to this times the model's, before the central crop.
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
_FINE_SWIN = dict(  # fine-tuned from swin_b; evaluated at 384 x 384 without a crop
    epochs=30,
    warmup_epochs=5,
    learning_rate=2e-5,
    warmup_learning_rate=2e-8,
    min_learning_rate=2e-7,
    weight_decay=1e-8,
    resize_ratio=1.0,
)
_FINE_CSWIN = dict(  # fine-tuned from cswin_b
    epochs=20,
    warmup_epochs=0,
    learning_rate=5e-6,
    warmup_learning_rate=5e-6,
    min_learning_rate=5e-7,
    weight_decay=1e-8,
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
    "swin_b_384": _swin(256, 0.5, **_FINE_SWIN),
    "cswin_t": _cswin(2048, 0.2),
    "cswin_s": _cswin(1024, 0.4),
    "cswin_b": _cswin(512, 0.5, ema_decay=0.99982, weight_decay=0.1),
    "cswin_b_384": _cswin(256, 0.7, ema_decay=0.99982, **_FINE_CSWIN),
}


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
        missing=f"MESA: from epoch 75 on {mesa} times the cross-entropy with what the averaged model says is added",
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
        missing="training on ImageNet-22k before",
    ),
    "vvt_t": _vvt(0.1),
    **{f"vvt_{size}": _vvt(0.3, clip_norm=1.0) for size in ("s", "m", "l")},
}


# InLine, Agent Attention and PolaFormer are trained by FLatten's recipes, but for batches and averages of the weights.
# InLine trains in float16. DeiT is trained from scratch at 288 and 448 px too, PVT at 256 px and Swin at 288 px.
_OF_INLINE = {
    "deit_t": _swin(4096, 0.1),
    "deit_s": _swin(1024, 0.1),
    "deit_b": _swin(512, 0.1),
    "pvt_t": _pvt(1024, 0.1),
    "pvt_s": _pvt(1024, 0.1),
    "pvt_m": _pvt(1024, 0.3, clip_norm=1.0),
    "pvt_l": _pvt(512, 0.3, clip_norm=1.0),
    "swin_t": _swin(1024, 0.2),
    "swin_s": _swin(1024, 0.3),
    "swin_b": _swin(512, 0.5),
    "swin_b_384": _swin(256, 0.5, **_FINE_SWIN),
    # Its averages are 0.9996 for a batch of 4096, and longer for a smaller one.
    "cswin_t": _cswin(1024, 0.2, ema_decay=0.9996 ** (1024 / 4096)),
    "cswin_s": _cswin(1024, 0.4, ema_decay=0.9996 ** (1024 / 4096)),
    "cswin_b": _cswin(512, 0.5, ema_decay=0.9996 ** (512 / 4096), weight_decay=0.1),
    "cswin_b_384": _cswin(256, 0.7, ema_decay=0.9996 ** (256 / 4096), **_FINE_CSWIN),
}
_OF_AGENT = {
    "deit_t": _swin(4096, 0.0),
    "deit_s": _swin(1024, 0.1),
    "deit_s_448": _swin(512, 0.1),
    "deit_b": _swin(1024, 0.3),
    "pvt_t": _pvt(1024, 0.1),
    "pvt_s": _pvt(1024, 0.1),
    "pvt_m": _pvt(1024, 0.3, clip_norm=1.0),
    "pvt_m_256": _pvt(512, 0.3, clip_norm=1.0),
    "pvt_l": _pvt(512, 0.3, clip_norm=1.0),
    "swin_t": _swin(1024, 0.2),
    "swin_s": _swin(1024, 0.3),
    "swin_s_288": _swin(512, 0.3, resize_ratio=1.0),
    "swin_b": _swin(512, 0.5),
    "swin_b_384": _swin(256, 0.5, **_FINE_SWIN),
    "cswin_t": _cswin(1024, 0.2),
    "cswin_s": _cswin(1024, 0.4),
    "cswin_b": _cswin(512, 0.5, ema_decay=0.99992, weight_decay=0.1),
    "cswin_b_384": _cswin(256, 0.7, ema_decay=0.9998, **_FINE_CSWIN),
}
_OF_POLA = {
    name: recipe for name, recipe in _OF_FLATTEN.items() if name.split("_")[:-1] in (["pvt"], ["swin"], ["swin", "b"])
}


def _of(paper: str, recipes: dict[str, Recipe], source: str) -> dict[str, Recipe]:
    """Recipes by the names of models, with the sources that they have in a repository of FLatten's layout."""
    source += f"{paper}_{{}}_*.yaml, the defaults of config.py, and README.md"
    return {f"{paper}_{name}": own._replace(source=source.format(name.split("_")[0])) for name, own in recipes.items()}


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
    resize="short",
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
        resize="short",
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
    missing="the script's weaker mixup (--config.augment.mixup=0.2)",
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
# The original's 4e-3 is for its batch of 4096.
_convnext = partial(
    Recipe,
    4096,
    source="facebookresearch/ConvNeXt, TRAINING.md and main.py",
    warmup_learning_rate=0.0,
    min_learning_rate=1e-6 / 8,
    ema_decay=0.9999,
    resize="short",
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
    resize="short",
)
_cvt_384 = partial(_cvt, source="that of 224 px; the one of 384 px is not at hand", resize_ratio=1.0, resize="squash")
_cvt_21 = dict(weight_decay=0.1, repeats=3)
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
    resize="short",
    repeats=3,
)
_svt = partial(
    Recipe,
    1024,
    source="badripatro/svt, README.md; batch, warm-up and the lower rates are not at hand, these are DeiT's",
    epochs=310,
    warmup_epochs=5,
    warmup_learning_rate=1e-6 / 2,
    min_learning_rate=1e-5 / 2,
    resize="short",
    repeats=3,
    missing="labels of 7 x 7 tokens from an external set",
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
    "hornet_s_gf": _hornet(0.4, clip_norm=1.0, missing="RandAugment of magnitude 12"),
    "hornet_b_gf": _hornet(0.5, clip_norm=1.0, missing="RandAugment of magnitude 15"),
    "cvt_13": _cvt(),
    "cvt_21": _cvt(**_cvt_21),
    "cvt_13_384": _cvt_384(),
    "cvt_21_384": _cvt_384(**_cvt_21),
    "cvt_w24": _cvt_384(drop_path=0.3, weight_decay=0.1, missing="pretraining on ImageNet-22k, fine-tuning from it"),
    **{
        f"sret_{size}{sliced}": _sret(missing="" if sliced else "a permutation drawn anew in every step")
        for size in ("t", "lt", "s")
        for sliced in ("", "_wo_slice")
    },
    "svt_h_s": _svt(0.1),
    "svt_h_b": _svt(0.1),
    "svt_h_l": _svt(0.3, clip_norm=1.0),
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
    **_OF_RAVLT,
    **_of("inline", _OF_INLINE, "LeapLabTHU/InLine@e463a6f, cfgs/"),
    **_of("agent", _OF_AGENT, "LeapLabTHU/Agent-Attention@207ce3e, agent_transformer/cfgs/"),
    **_of("pola", _OF_POLA, "ZacharyMeng/PolaFormer@44cdd39, cfgs/"),
    **_OF_SOFT,
    **_OF_VIG,
    **_OF_CONVNEXT,
    **_OF_SCALES,
}
