"""The settings of a segmenter, and values of them that are right by themselves and do not fit together."""

from collections.abc import Iterator

import ml_collections

from flatten_jax.lra import sources as lra
from flatten_jax.segmentation.model import HEADS
from flatten_jax.training.setting import NO_AUGMENTATION, Setting

SETTINGS = {
    "segmentation.head": Setting(str, "", "upernet or semfpn: learn a class for each pixel; '': for each picture", ""),
    "segmentation.channels": Setting(int, "[0, inf)", "width of the head; 0: that of the published ones", 0),
    "segmentation.mosaic": Setting(
        str,
        "none | voronoi | rectangles",
        "make mosaics of the classified pictures of data.name; none: it has masks",
        "none",
    ),
    "segmentation.reduce_zero_label": Setting(bool, "", "masks have 0 for no class and 1 for the first one", False),
    "segmentation.resize": Setting(
        tuple, "[1, inf)", "(shorter side, longer side) to resize pictures within; mosaics have their own", (512, 2048)
    ),
    "segmentation.ratio": Setting(tuple, "(0, inf)", "smallest and largest factor of that, in training", (0.5, 2.0)),
    "segmentation.cat_max_ratio": Setting(float, "(0, 1]", "a crop with this share of one class is drawn again", 0.75),
    "segmentation.photometric": Setting(bool, "", "change brightness, contrast, saturation and hue at random", True),
    "segmentation.auxiliary_weight": Setting(float, "[0, inf)", "of the auxiliary head's loss", 0.4),
    "segmentation.avg_non_ignore": Setting(bool, "", "loss: a mean over labelled pixels instead of over all", False),
    "segmentation.eval": Setting(
        str, "whole | slide", "take pictures whole, or by windows of model.image_size", "whole"
    ),
    "segmentation.stride": Setting(int, "[1, inf)", "of the windows of slide, in pixels", 341),
    "segmentation.multiple": Setting(
        int, "[1, inf)", "of whole: sides are rounded to it; 1: more shapes to compile", 32
    ),
}
# What is done to pictures for classes alone; where it is done to pictures with masks, `segmentation` says it.
OF_CLASSES = {option: off for option, off in NO_AUGMENTATION.items() if option != "hflip"}


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
    for option, off in OF_CLASSES.items():
        value = config.augment[option]
        if (tuple(value) if isinstance(value, list) else value) != off:
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
