"""The arena's tasks as sources of examples, and how their examples become tokens."""

import os
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from PIL import Image

from flatten_jax.data.augment import decode
from flatten_jax.data.folder import FolderSource
from flatten_jax.data.source import Example, Source
from flatten_jax.lra import listops
from flatten_jax.lra.made import Made, open_parts, read, records

SOURCES = ("lra_image", "pathfinder", "listops")
SPLITS = ("train", "validation", "test")
# The shares of the sets: 160,000, 20,000 and 20,000 of 200,000 pictures; 96,000, 2,000 and 2,000 of 100,000 sequences.
SHARES = {"pathfinder": 0.1, "listops": 0.02}
IN_MEMORY = 320  # examples that are made without a folder
CIFAR10 = {"train": 50_000, "test": 10_000}
GREY = (0.2989, 0.5870, 0.1140)  # ITU-R BT.601


def open_lra(
    name: str,
    split: str,
    folder: str | os.PathLike | None,
    examples: int | None = None,
    size: int | None = None,
) -> Source:
    """A split of one of `SOURCES`.

    Args:
        split: "train", "validation" (or "eval"), "test".
        folder: of CIFAR-10, or of a set that was made; None: `examples` are made in memory, to try things out.
        size: of pictures made in memory.

    Raises:
        FileNotFoundError, ValueError: nothing or another set is there, or no such split; the text says what to do.
    """
    split = "validation" if split == "eval" else split
    if split not in SPLITS:
        raise ValueError(f"{split=} of the data source {name!r} must be one of {', '.join(SPLITS)}")
    if name == "lra_image":
        if folder is None:
            raise ValueError("the data source 'lra_image' needs folder=PATH, CIFAR-10 as train/<class>/*.jpg and test/")
        return ImageSource(folder, split)
    return MadeSource(name, split, folder, examples, size)


class ImageSource(Source):
    """CIFAR-10 of a folder, of whose training pictures a tenth, always the same, is for validation."""

    def __init__(self, folder: str | os.PathLike, split: str):
        self._pictures = FolderSource(folder, "test" if split == "test" else "train", hold_out=False)
        self.class_names = self._pictures.class_names
        count, expected = len(self._pictures), CIFAR10["test" if split == "test" else "train"]
        if count != expected:
            self.note = f"{folder} is not CIFAR-10: {count:,} pictures, not {expected:,}; figures compare with nobody's"
        self._order = np.arange(count)
        if split != "test":
            order = np.random.RandomState(0).permutation(count)  # whose numbers never change
            self._order = np.sort(order[: count // 10] if split == "validation" else order[count // 10 :])

    def __len__(self) -> int:
        return len(self._order)

    def __getitem__(self, index: int) -> Example:
        return self._pictures[int(self._order[index])]


class MadeSource(Source):
    """A set of Pathfinder or ListOps. A picture is uint8 (size, size, 3), a sequence uint8 (length,)."""

    def __init__(self, task: str, split: str, folder: str | os.PathLike | None, examples: int | None, size: int | None):
        self._folder = None if folder is None else os.path.expanduser(folder)
        if self._folder is None:
            own = {"size": size or 32, "difficulty": "hard"} if task == "pathfinder" else {}
            self._made = Made(task, examples or IN_MEMORY, **own)
            self._made.check()
        else:
            self._made = read(self._folder)
            open_parts(self._made, self._folder)  # refuses one that is not whole
        if self._made.task != task:
            raise ValueError(f"{folder} holds {self._made.task} and not {task}: set data.name={self._made.task}")
        aside = round(self._made.count * SHARES[task])
        bounds = (0, self._made.count - 2 * aside, self._made.count - aside, self._made.count)
        place = SPLITS.index(split)
        self._range = range(bounds[place], bounds[place + 1])
        if not self._range:
            raise ValueError(f"{self._made.count} examples of {task} leave none for {split}: make more")
        self.class_names = ("apart", "connected") if task == "pathfinder" else tuple(map(str, range(10)))
        self.vocabulary = 256 if task == "pathfinder" else len(listops.WORDS)
        if self._folder is None and split != "train":
            self.note = f"{self._made.count:,} examples of {task} are made in memory, to try things out: no result"
        self._parts: list[np.ndarray] | None = None

    def __len__(self) -> int:
        return len(self._range)

    def __getitem__(self, index: int) -> Example:
        if self._parts is None:
            made = self._made
            self._parts = (
                [records(made, made.indices(part)) for part in range(made.parts)]
                if self._folder is None
                else open_parts(made, self._folder)
            )
        index = self._range[index]
        record = self._parts[index // self._made.part][index % self._made.part]
        name = f"{self._made.task}/{self._folder or 'in memory'}/{index}"
        if self._made.task == "listops":
            return Example(np.array(record["tokens"][: record["length"]]), int(record["label"]), name)
        return Example(np.repeat(record["image"][..., None], 3, axis=-1), int(record["label"]), name)

    def __getstate__(self):
        return self.__dict__ | {"_parts": None}


@dataclass(frozen=True)
class Tokens:
    """Makes tokens of examples: of pictures their grey values, row by row, of sequences themselves, filled up.

    Attributes:
        grid: (height, width) of the tokens.
    """

    grid: tuple[int, int]
    words: ClassVar[np.dtype] = np.dtype(np.uint8)

    @property
    def shape(self) -> tuple[int]:
        return (self.grid[0] * self.grid[1],)

    def __call__(self, image: Image.Image, rng: np.random.Generator | None = None) -> np.ndarray:
        """Returns uint8 (height * width,)."""
        height, width = self.grid
        if (image.height, image.width) != (height, width):
            raise ValueError(
                f"a picture of {image.height} x {image.width} pixels has no tokens on a grid {height} x {width}: "
                f"set model.image_size=({image.height}, {image.width})"
            )
        grey = np.asarray(image, np.float64) @ np.array(GREY)
        return np.floor(grey * (255.5 / 255)).astype(np.uint8).reshape(-1)

    def from_file(self, image: bytes | np.ndarray, name: str, rng: np.random.Generator | None = None) -> np.ndarray:
        """The same of an example as its source gives it."""
        if not (isinstance(image, np.ndarray) and image.ndim == 1):
            return self(decode(image, name), rng)
        (length,) = self.shape
        if len(image) > length:
            raise ValueError(f"{name} has {len(image)} tokens, more than model.image_size={self.grid} takes")
        return np.pad(image, (0, length - len(image)))
