"""Masks looked at before anything is trained or compiled: what is wrong with them, and which ids they have."""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from flatten_jax.counted import counted
from flatten_jax.data.augment import CorruptImageError, decode
from flatten_jax.data.check import LISTED, in_threads
from flatten_jax.runtime import cores
from flatten_jax.segmentation.masks import IGNORED, MaskError, check_sizes, class_ids, read_mask
from flatten_jax.segmentation.sources import MaskSource


class Found(NamedTuple):
    """What masks hold.

    Attributes:
        faults: a line for each picture that cannot be used.
        masks: how many were looked at.
        pixels: (256,) of each stored id, of masks without a fault.
        table: of the source.
    """

    faults: tuple[str, ...]
    masks: int
    pixels: np.ndarray
    table: np.ndarray

    def said(self) -> str:
        """Ids, ignored share and absent classes, in a line."""
        ids, classes = np.flatnonzero(self.pixels), self.table[self.table < 254]
        if not ids.size:
            return f"{counted(self.masks, 'mask')} without a pixel"
        per_class = np.bincount(self.table, weights=self.pixels, minlength=256)
        absent = [str(number) for number in range(len(classes)) if not per_class[number]]
        seen = (
            f"all {len(classes)} classes" if not absent else f"{len(classes) - len(absent)} of {len(classes)} classes"
        )
        without = f", not {', '.join(absent[:10])}{', ...' * (len(absent) > 10)}" if absent else ""
        return (
            f"{counted(self.masks, 'mask')} with the ids {_ranges(ids)}: {seen}{without}; "
            f"{per_class[IGNORED] / self.pixels.sum():.1%} of the pixels are of none"
        )


def check_masks(
    source: MaskSource,
    indices: Iterable[int] | None = None,
    *,
    whole: bool = True,
    skip_corrupt: bool = False,
    progress: str = "",
) -> Found:
    """Looks at the masks of a set.

    Args:
        indices: of those that are meant; default: all.
        whole: decode the pictures too, not only their headers.
        skip_corrupt: files that cannot be decoded are no fault.
        progress: shows a bar of this name.
    """
    pixels = np.zeros(256, np.int64)

    def look(index: int) -> str | np.ndarray | None:
        try:
            image, mask, name, mask_name = source.stored(index)
            ids = mask if isinstance(mask, np.ndarray) else read_mask(mask, mask_name)
            if whole:
                decode(image, name)
            check_sizes(image, ids.shape, name)
            class_ids(ids, source.table, mask_name)
        except CorruptImageError as error:
            return None if skip_corrupt else str(error)
        except (MaskError, OSError) as error:
            return str(error)
        return np.bincount(ids.ravel(), minlength=256)

    chosen = list(range(len(source)) if indices is None else indices)
    faults = []
    for answer in in_threads(look, tqdm(chosen, desc=progress, unit="mask", disable=not progress), cores()):
        if isinstance(answer, str):
            faults.append(answer)
        else:
            pixels += answer
    return Found(tuple(faults), len(chosen), pixels, source.table)


def glance(source: MaskSource, process_index: int = 0, process_count: int = 1, skip_corrupt: bool = False) -> str:
    """Looks at some masks and at the headers of their pictures; returns what they hold, in a line.

    Args:
        process_index, process_count: each process looks at its share of them.
        skip_corrupt: files that cannot be decoded are no fault, because the training replaces them.

    Raises:
        MaskError: some cannot be used; names them.
    """
    indices = np.linspace(0, len(source) - 1, min(len(source), source.glanced_at)).astype(int)[
        process_index::process_count
    ]
    found = check_masks(source, indices.tolist(), whole=False, skip_corrupt=skip_corrupt)
    if found.faults:
        more = f"\n  and {len(found.faults) - LISTED} more" if len(found.faults) > LISTED else ""
        listed = "".join(f"\n  {fault}" for fault in found.faults[:LISTED])
        raise MaskError(
            f"{len(found.faults)} of {found.masks:,} pictures with masks cannot be used:{listed}{more}\n"
            "`flatten-jax check-data` lists all"
        )
    return found.said()


def _ranges(ids: np.ndarray) -> str:
    """ "0-149, 255"."""
    runs = np.split(ids, np.flatnonzero(np.diff(ids) != 1) + 1)
    return ", ".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)
