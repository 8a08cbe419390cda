"""Values of the settings of a segmenter that are right by themselves and do not fit together."""

from collections.abc import Iterator

import ml_collections

from flatten_jax.lra import sources as lra

HEADS = ("upernet", "semfpn")
# What is done to pictures for classes alone; where it is done to pictures with masks, `segmentation` says it.
NO_AUGMENTATION = {"rand_augment": "", "erase_prob": 0.0, "mixup": 0.0, "cutmix": 0.0, "label_smoothing": 0.0}


def conflicts(config: ml_collections.ConfigDict) -> Iterator[str]:
    """A line for each."""
    wanted, data = config.segmentation, config.data
    if not wanted.head:
        if wanted.mosaic != "none":
            yield (
                f"segmentation.mosaic={wanted.mosaic!r} has no effect without a head: add "
                "--config.segmentation.head=upernet, or semfpn"
            )
        return
    if wanted.head not in HEADS:
        yield f"segmentation.head={wanted.head!r} must be one of {', '.join(HEADS)}, or '' to learn classes of pictures"
    for option, off in NO_AUGMENTATION.items():
        if config.augment[option] != off:
            yield (
                f"augment.{option}={config.augment[option]!r} has no effect on pictures with masks: set it to {off!r}; "
                "what they get is in config.segmentation, and augment.hflip"
            )
    if config.distill.kind != "none" or config.distill.teacher or config.linearize.attention:
        yield (
            f"distill.kind={config.distill.kind!r}, distill.teacher={config.distill.teacher!r}: segmenters are trained "
            "without a teacher; convert or distil a classifier, and start from that by --config.init_from"
        )
    if data.name in lra.SOURCES:
        yield f"data.name={data.name!r} has neither masks nor pictures of classes that could be made mosaics"
    if wanted.mosaic != "none" and wanted.reduce_zero_label:
        yield "segmentation.reduce_zero_label=True is for stored masks, and mosaics make their own: leave it out"
    size = config.model.get("image_size") or (512, 512)
    sides = (size, size) if isinstance(size, int) else size
    if wanted.eval == "slide" and wanted.stride > min(sides):
        yield (
            f"segmentation.stride={wanted.stride} leaves gaps between windows of model.image_size={tuple(sides)}: make "
            f"it at most {min(sides)}"
        )
