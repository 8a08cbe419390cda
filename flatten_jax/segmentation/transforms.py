"""Pictures and masks together, made arrays: random scale, crop, flip and distortion for training; whole or windows.

Numbers and order are mmsegmentation's. A mask is uint8 (height, width) of class ids, IGNORED where there is none.
"""

from dataclasses import dataclass

import numpy as np

from flatten_jax.data.augment import decode
from flatten_jax.data.source import Example
from flatten_jax.segmentation.distort import Distortion, distort, resized, resized_mask
from flatten_jax.segmentation.masks import IGNORED

CROP_ATTEMPTS = 10
Size = tuple[int, int]
Box = tuple[int, int, int, int]


def scaled_size(size: Size, within: tuple[float, float]) -> Size:
    """(height, width) made as large as it goes with the shorter side and the longer one within (shorter, longer)."""
    shorter, longer = within
    factor = min(longer / max(size), shorter / min(size))
    return max(1, int(size[0] * factor + 0.5)), max(1, int(size[1] * factor + 0.5))


@dataclass(frozen=True)
class TrainTransform:
    """A random part of a randomly resized picture, and the same part of its mask.

    Attributes:
        size: (height, width) of the result.
        resize: (shorter side, longer side) that a picture is resized within, its aspect kept, times `ratio`.
        ratio: smallest and largest factor; it is drawn uniformly.
        cat_max_ratio: a crop where one class has this share of the labelled pixels or more, or that has one class only,
            is drawn again, up to ten times; 1: any crop will do.
        hflip: probability of mirroring.
        photometric: brightness, contrast, saturation and hue are changed at random.
        fill: colour of what the crop has beyond the picture; the mask is IGNORED there. The mean of the normalisation,
            which becomes 0.
    """

    size: Size
    resize: tuple[int, int] = (512, 2048)
    ratio: tuple[float, float] = (0.5, 2.0)
    cat_max_ratio: float = 0.75
    hflip: float = 0.5
    photometric: bool = True
    fill: tuple[int, int, int] = (124, 116, 104)

    @property
    def shape(self) -> tuple[int, ...]:
        """As many bytes as picture and mask have, which the pipeline makes room for."""
        return (*self.size, 4)

    def labelled(self, example: Example, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """(uint8 (height, width, 3), uint8 (height, width)); every random number is drawn from `rng`."""
        pixels, mask = np.asarray(decode(example.image, example.name)), example.label
        factor = rng.uniform(*self.ratio)
        whole = scaled_size(mask.shape, (int(self.resize[0] * factor), int(self.resize[1] * factor)))
        box = self._box(whole, rng)
        part = resized_mask(mask, whole, box)
        for _ in range(CROP_ATTEMPTS if self.cat_max_ratio < 1 else 0):
            if is_mixed(part, self.cat_max_ratio):
                break
            box = self._box(whole, rng)
            part = resized_mask(mask, whole, box)
        picture = resized(pixels, whole, box)
        if rng.random() < self.hflip:
            picture, part = picture[:, ::-1], part[:, ::-1]
        if self.photometric:
            picture = distort(np.ascontiguousarray(picture), Distortion.drawn(rng))
        image = np.empty((*self.size, 3), np.uint8)
        image[:] = self.fill
        label = np.full(self.size, IGNORED, np.uint8)
        height, width = part.shape
        image[:height, :width], label[:height, :width] = picture, part
        return image, label

    def _box(self, whole: Size, rng: np.random.Generator) -> Box:
        height, width = (min(inner, outer) for inner, outer in zip(self.size, whole, strict=True))
        top, left = rng.integers(whole[0] - height + 1), rng.integers(whole[1] - width + 1)
        return int(top), int(left), height, width


def is_mixed(mask: np.ndarray, most: float) -> bool:
    """Whether a mask has two classes or more, and none of them `most` of the labelled pixels."""
    counts = np.bincount(mask.ravel(), minlength=IGNORED + 1)[:IGNORED]
    return bool(counts.any()) and counts.max() / counts.sum() < most


@dataclass(frozen=True)
class EvalTransform:
    """A picture resized, as a whole or as windows that overlap; the mask stays as it is.

    Attributes:
        resize: (shorter side, longer side) that a picture is resized within, its aspect kept.
        window: (height, width) of the windows; None: the picture is taken whole.
        stride: of the windows, in both directions.
        multiple: of whole pictures: each side is rounded to a multiple of it, so that it suits the model's strides and
            there are fewer shapes to compile for; the aspect changes a little.
        fill: colour of what a window has beyond a picture that is smaller.
    """

    resize: tuple[int, int]
    window: Size | None = None
    stride: int = 341
    multiple: int = 32
    fill: tuple[int, int, int] = (124, 116, 104)

    def resized_size(self, size: Size) -> Size:
        """What a picture of (height, width) is resized to."""
        height, width = scaled_size(size, self.resize)
        if self.window is None:
            height, width = (max(1, round(side / self.multiple)) * self.multiple for side in (height, width))
        return height, width

    def places(self, size: Size) -> list[tuple[int, int]]:
        """(top, left) of the windows of a resized picture, row by row; the last ones of a row and column inside."""
        if self.window is None:
            return [(0, 0)]
        starts = [
            [
                min(i * self.stride, max(0, side - crop))
                for i in range(max(side - crop + self.stride - 1, 0) // self.stride + 1)
            ]
            for side, crop in zip(size, self.window, strict=True)
        ]
        return [(top, left) for top in starts[0] for left in starts[1]]

    def windows(self, example: Example) -> np.ndarray:
        """uint8 (windows, height, width, 3)."""
        pixels = np.asarray(decode(example.image, example.name))
        size = self.resized_size(pixels.shape[:2])
        picture = resized(pixels, size)
        height, width = self.window or size
        places = self.places(size)
        windows = np.empty((len(places), height, width, 3), np.uint8)
        windows[:] = self.fill
        for window, (top, left) in zip(windows, places, strict=True):
            part = picture[top : top + height, left : left + width]
            window[: part.shape[0], : part.shape[1]] = part
        return windows
