"""From a config to what segmentation needs: the model, the task, the data and what is done to them."""

from typing import Any

import ml_collections

from flatten_jax.data.source import Source
from flatten_jax.segmentation import sources
from flatten_jax.segmentation.create import create_segmenter
from flatten_jax.segmentation.model import Segmenter
from flatten_jax.segmentation.mosaic import MosaicSource
from flatten_jax.segmentation.sources import MaskSource
from flatten_jax.segmentation.task import Segment
from flatten_jax.segmentation.transforms import EvalTransform, Size, TrainTransform

MOSAICS = 320  # where a config does not say how many
OF_EVALUATION = 5  # one evaluation mosaic for so many of training


def create(config: ml_collections.ConfigDict, name: str, num_classes: int = 0, **options: Any) -> Segmenter:
    """The segmenter of a config, with these options of its section `model`.

    Args:
        num_classes: 0: not known yet.
    """
    wanted = config.segmentation
    own = {"channels": wanted.channels} if wanted.channels else {}
    return create_segmenter(name, head=wanted.head, num_classes=num_classes or 1, **own, **options)


def task(config: ml_collections.ConfigDict, model: Segmenter, class_names: tuple[str, ...]) -> Segment:
    """What is optimised."""
    mean, std = (tuple(map(float, config.data[option])) for option in ("mean", "std"))
    return Segment(
        model,
        mean=mean,
        std=std,
        auxiliary_weight=config.segmentation.auxiliary_weight,
        avg_non_ignore=config.segmentation.avg_non_ignore,
        class_names=class_names,
    )


def transform(config: ml_collections.ConfigDict, size: Size, *, train: bool) -> TrainTransform | EvalTransform:
    """What makes arrays of pictures and masks, for a model of an image size."""
    wanted = config.segmentation
    fill = tuple(round(255 * channel) for channel in config.data.mean)
    resize = tuple(wanted.resize) if wanted.mosaic == "none" else (min(size), max(size))
    if train:
        return TrainTransform(
            tuple(size),
            resize=resize,
            ratio=tuple(wanted.ratio),
            cat_max_ratio=wanted.cat_max_ratio,
            hflip=config.augment.hflip,
            photometric=wanted.photometric,
            fill=fill,
        )
    window = tuple(size) if wanted.eval == "slide" else None
    return EvalTransform(resize, window, wanted.stride, wanted.multiple, fill)


def open_masks(config: ml_collections.ConfigDict, split: str) -> MaskSource:
    """The pictures with masks to train on ("train"), or to evaluate on ("eval")."""
    data = config.data
    return sources.open_masks(
        data.name,
        data[f"{split}_split"],
        num_classes=config.model.num_classes,
        reduce_zero_label=config.segmentation.reduce_zero_label,
        data_dir=data.data_dir or None,
        folder=data.folder or None,
        cache_dir=data.cache_dir or None,
    )


def mosaics(config: ml_collections.ConfigDict, split: str, pictures: Source) -> MosaicSource:
    """Mosaics of the size of the model, of a split of classified pictures. No other split has the same."""
    count = config.data.examples or MOSAICS
    count = count if split == "train" else max(1, count // OF_EVALUATION)
    size = config.model.image_size
    size = (size, size) if isinstance(size, int) else size
    return MosaicSource(pictures, config.segmentation.mosaic, size, count, seed=("train", "eval").index(split))
