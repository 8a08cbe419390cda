"""Recipes of the backbones that linear attentions are compared with."""

from functools import partial

from configs.recipes.recipe import Recipe

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
_STRONGEST = {"rand_augment": "rand-m10-inc1"}  # of magnitude 12 and 15 there, which timm cuts at 10
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
    "hornet_s_gf": _hornet(0.4, clip_norm=1.0, augment=_STRONGEST),
    "hornet_b_gf": _hornet(0.5, clip_norm=1.0, augment=_STRONGEST),
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

COMPARED: dict[str, Recipe] = {**_OF_CONVNEXT, **_OF_SCALES}
