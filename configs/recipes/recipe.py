"""How a model is trained, as data."""

from collections.abc import Mapping
from typing import Any, NamedTuple

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
        resize: "squash" both sides to it, or the "short" one.
        repeats: of a picture in an epoch (repeated augmentation).
        augment: other values of config.augment than those of `configs/base.py`.
        mean, std: of the channels.
        mesa: weight of what the averaged model answers, from a quarter of the epochs on; 0: it is not asked.
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
    resize: str = "squash"
    repeats: int = 1
    augment: Mapping[str, Any] = {}
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    mesa: float = 0.0
    missing: str = ""
