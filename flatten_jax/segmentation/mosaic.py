"""Mosaics of classified pictures: something to segment that is real texture, wherever there is a set of classes."""

import numpy as np

from flatten_jax.data.augment import decode
from flatten_jax.data.source import Source
from flatten_jax.segmentation.distort import resized
from flatten_jax.segmentation.masks import IGNORED, id_table
from flatten_jax.segmentation.sources import MaskSource, Stored

CELLS = ("voronoi", "rectangles")
VORONOI = (3, 8)  # how many cells a mosaic has, at least and at most
CUTS = (1, 2)  # of each side of a mosaic of rectangles


class MosaicSource(MaskSource):
    """Pictures whose cells are filled from one classified picture each; label: its class, IGNORED along the borders.

    A mosaic is a function of (seed, index) and of the pictures, which are those of the split: test cells are of test
    pictures. A picture is enlarged or shrunk to cover its cell, its aspect kept, at a random place.

    Args:
        pictures: to fill the cells with.
        cells: "voronoi": the pixels that are nearest to one of several random points; or "rectangles".
        size: (height, width).
        count: of mosaics.
        seed: of all that is drawn.
    """

    glanced_at = 50  # which have to be made for it

    def __init__(self, pictures: Source, cells: str, size: tuple[int, int], count: int, seed: int = 0):
        if cells not in CELLS:
            raise ValueError(f"segmentation.mosaic={cells!r} must be one of {', '.join(CELLS)}")
        self.class_names = pictures.class_names
        self.table = id_table(len(self.class_names))
        self.note = pictures.note
        self._pictures, self._cells, self._size, self._count, self._seed = pictures, cells, tuple(size), count, seed

    def __len__(self) -> int:
        return self._count

    def size(self, index: int) -> tuple[int, int]:
        return self._size

    def stored(self, index: int) -> Stored:
        if not 0 <= index < self._count:
            raise IndexError(f"mosaic {index} of {self._count}")
        rng = np.random.default_rng([self._seed, index])
        cells = (voronoi if self._cells == "voronoi" else rectangles)(self._size, rng)
        image = np.zeros((*self._size, 3), np.uint8)
        mask = np.full(self._size, IGNORED, np.uint8)
        for cell in range(cells.max() + 1):
            inside = cells == cell
            rows, columns = (np.flatnonzero(inside.any(axis)) for axis in (1, 0))
            example = self._pictures[int(rng.integers(len(self._pictures)))]
            corner = rng.random(2)  # drawn for cells without a pixel too, so that all others stay as they are
            if not rows.size:
                continue
            box = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
            here = inside[box]
            image[box][here] = _covering(np.asarray(decode(example.image, example.name)), here.shape, corner)[here]
            mask[box][here] = example.label
        mask[borders(cells)] = IGNORED
        return Stored(image, mask, *[f"mosaic/{index}"] * 2)


def voronoi(size: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """int (height, width): number of the nearest of some random points, some of which may have no pixel."""
    points = rng.random((rng.integers(VORONOI[0], VORONOI[1] + 1), 2)) * size
    y, x = np.mgrid[: size[0], : size[1]]
    return ((y - points[:, 0, None, None]) ** 2 + (x - points[:, 1, None, None]) ** 2).argmin(0)


def rectangles(size: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """int (height, width): number of the rectangle, of sides cut at random places."""
    parts = []
    for side in size:
        cuts = rng.integers(1, side, rng.integers(CUTS[0], CUTS[1] + 1)) if side > 1 else np.empty(0, int)
        parts.append(np.searchsorted(np.sort(cuts), np.arange(side), side="right"))
    return parts[0][:, None] * (parts[1].max() + 1) + parts[1][None]


def borders(cells: np.ndarray) -> np.ndarray:
    """bool (height, width): where the next pixel in a row or column is of another cell."""
    found = np.zeros(cells.shape, bool)
    for axis in (0, 1):
        differs = np.diff(cells, axis=axis) != 0
        first, second = (slice(None),) * axis + (slice(None, -1),), (slice(None),) * axis + (slice(1, None),)
        found[first] |= differs
        found[second] |= differs
    return found


def _covering(pixels: np.ndarray, size: tuple[int, int], corner: np.ndarray) -> np.ndarray:
    """A part of (height, width) of a picture that is resized just to cover it."""
    factor = max(size[0] / pixels.shape[0], size[1] / pixels.shape[1])
    whole = tuple(max(least, round(side * factor)) for side, least in zip(pixels.shape[:2], size, strict=True))
    top, left = (int(share * (outer - inner + 1)) for share, outer, inner in zip(corner, whole, size, strict=True))
    return resized(pixels, whole, (top, left, *size))
