"""Batches of an evaluation of pictures with masks: every picture once, in arrays of few shapes."""

import collections
import math
from dataclasses import dataclass
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from flatten_jax.data import pipeline
from flatten_jax.segmentation.masks import IGNORED
from flatten_jax.segmentation.sources import MaskSource
from flatten_jax.segmentation.transforms import EvalTransform, Size
from flatten_jax.segmentation.windows import ROWS
from flatten_jax.training.sharding import over_data


class Shape(NamedTuple):
    """Of a batch.

    Attributes:
        pictures: over all processes.
        windows: of a picture, at most.
        window, canvas: (height, width) of each window; and that every mask of the batch fits into.
    """

    pictures: int
    windows: int
    window: Size
    canvas: Size

    def arrays(self, pictures: int) -> dict[str, tuple[tuple[int, ...], type]]:
        """{name: (shape, dtype)} of so many pictures; see `EvalBatches`."""
        kinds = {
            "image": ((self.windows, *self.window, 3), np.uint8),
            "label": (self.canvas, np.uint8),
            "places": ((self.windows, 2), np.int32),
            "windows": ((), np.int32),
            "resized": ((2,), np.int32),
            "original": ((2,), np.int32),
            "mask": ((), np.bool_),
        }
        return {name: ((pictures, *shape), dtype) for name, (shape, dtype) in kinds.items()}

    def abstract(self, mesh: Mesh) -> dict[str, jax.ShapeDtypeStruct]:
        """The batch of all processes, its leading axis split over the devices."""
        sharding = over_data(mesh)
        return {
            name: jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)
            for name, (shape, dtype) in self.arrays(self.pictures).items()
        }


@dataclass(frozen=True)
class EvalBatches:
    """Random access to one process's part of the batches.

    Pictures of the same window are in batches of one shape: with sliding windows all of them, of pictures taken whole
    those that are resized to the same size.

    A batch is image uint8 (b, windows, height, width, 3), label uint8 (b, *canvas) at the original size, IGNORED beyond
    it, original and resized int32 (b, 2), places int32 (b, windows, 2), windows int32 (b,), mask bool (b,), False where
    there is no picture.

    Attributes:
        plan: of each batch its shape and the indices of its pictures.
        process_index, process_count: of the processes, which take consecutive slices of a batch.
    """

    source: MaskSource
    transform: EvalTransform
    plan: tuple[tuple[Shape, tuple[int, ...]], ...]
    process_index: int = 0
    process_count: int = 1

    @property
    def shapes(self) -> list[Shape]:
        """Those that there are, each of which the evaluation is compiled for."""
        return list(dict.fromkeys(shape for shape, _ in self.plan))

    @property
    def local_size(self) -> int:
        return pipeline.size_here(max(shape.pictures for shape in self.shapes), self.process_index, self.process_count)

    @property
    def largest(self) -> tuple[int]:
        """Bytes of a picture's windows and mask, at most, which the pipeline makes room for."""
        return (max(3 * shape.windows * math.prod(shape.window) + math.prod(shape.canvas) for shape in self.shapes),)

    def __len__(self) -> int:
        return len(self.plan)

    def __getitem__(self, index: int) -> tuple[pipeline.Batch, pipeline.Faults]:
        shape, indices = self.plan[index]
        count = pipeline.size_here(shape.pictures, self.process_index, self.process_count)
        batch = {name: np.zeros(s, dtype) for name, (s, dtype) in shape.arrays(count).items()}
        batch["label"][:] = IGNORED
        batch["original"][:] = batch["resized"][:] = 1
        for place, i in enumerate(indices[self.process_index * count :][:count]):
            example = self.source[i]
            windows, size = self.transform.windows(example), example.label.shape
            resized = self.transform.resized_size(size)
            batch["image"][place, : len(windows)] = windows
            batch["label"][place, : size[0], : size[1]] = example.label
            batch["places"][place, : len(windows)] = self.transform.places(resized)
            batch["windows"][place] = len(windows)
            batch["resized"][place], batch["original"][place] = resized, size
            batch["mask"][place] = True
        return batch, ()


def plan_batches(
    source: MaskSource,
    transform: EvalTransform,
    *,
    batch_size: int,
    devices: int = 1,
    process_index: int = 0,
    process_count: int = 1,
) -> EvalBatches:
    """Looks at the size of every picture, and says what is in which batch.

    Args:
        batch_size: pictures of a batch at most, over all processes; divides by `devices`.
        devices: a batch has a multiple of so many places.
    """
    groups: dict[Size, list[int]] = collections.defaultdict(list)
    sizes = [tuple(map(int, source.size(i))) for i in range(len(source))]
    for i, size in enumerate(sizes):
        groups[transform.window or transform.resized_size(size)].append(i)
    plan = []
    for window, indices in sorted(groups.items(), key=lambda group: (-len(group[1]), group[0])):
        height, width = (max(sizes[i][axis] for i in indices) for axis in (0, 1))
        shape = Shape(
            pictures=min(batch_size, -(-len(indices) // devices) * devices),
            windows=max(len(transform.places(transform.resized_size(sizes[i]))) for i in indices),
            window=window,
            canvas=(-(-height // ROWS) * ROWS, width),
        )
        for first in range(0, len(indices), shape.pictures):
            plan.append((shape, tuple(indices[first : first + shape.pictures])))
    return EvalBatches(source, transform, tuple(plan), process_index, process_count)
