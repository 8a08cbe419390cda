"""What every source of examples is: random access to labelled pictures.

A source is a picklable sequence of `Example`s. It carries file names and lengths only; files are opened in the process
that reads them, because Grain's worker processes receive a copy.
"""

import abc
from typing import NamedTuple

import numpy as np


class Example(NamedTuple):
    """One labelled picture.

    Attributes:
        image: the undecoded file, or uint8 (height, width, 3).
        label: index into the source's `class_names`; of pictures with masks uint8 (height, width), see
            `segmentation.sources`.
        name: what an error calls the picture, such as its path.
    """

    image: bytes | np.ndarray
    label: int | np.ndarray
    name: str


class Source(abc.ABC):
    """Random access to a split.

    Attributes:
        class_names: one name per label.
        note: what is unusual about the split, for people; or "".
        vocabulary: how many tokens there are, for models of tokens: of pictures the grey values.
    """

    class_names: tuple[str, ...]
    note: str = ""
    vocabulary: int = 256

    @abc.abstractmethod
    def __len__(self) -> int: ...

    @abc.abstractmethod
    def __getitem__(self, index: int) -> Example: ...
