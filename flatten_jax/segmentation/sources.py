"""Pictures with masks: a folder of `images/` and `annotations/`, and data sets of TFDS. See `mosaic` for others."""

import abc
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from flatten_jax.counted import counted
from flatten_jax.data import bucket
from flatten_jax.data.folder import EXTENSIONS
from flatten_jax.data.source import Example, Source
from flatten_jax.data.sources import TfdsSource, data_root
from flatten_jax.segmentation.masks import check_sizes, class_ids, id_table, png_size, read_mask

SPLITS = {
    "train": ("training", "train"),
    "eval": ("validation", "val", "test"),
}  # names of folders, the first that is there
NAMES = ("classes.txt", "objectInfo150.txt")  # a name a line; as ADE20K's challenge has it
LISTED = 3
SCENE_PARSE = (
    "the TFDS set scene_parse150 is not the ADE20K of 150 classes: its masks hold 100 countable categories, without "
    "sky, wall or floor, and no published mIoU is of it. Download ADEChallengeData2016 and read it by "
    "--config.data.name=folder --config.data.folder=ADEChallengeData2016"
)


class Stored(NamedTuple):
    """A picture and its mask as they are stored, undecoded files or arrays, and what errors call them."""

    image: bytes | np.ndarray
    mask: bytes | np.ndarray
    name: str
    mask_name: str


class MaskSource(Source):
    """Random access to pictures with masks. The label of an `Example` is uint8 (height, width), IGNORED where none is.

    Attributes:
        table: what becomes of a stored id, see `id_table`.
        glanced_at: how many masks, evenly spread, are looked at before a training.
    """

    table: np.ndarray
    glanced_at: int = 1000  # some seconds

    @abc.abstractmethod
    def stored(self, index: int) -> Stored:
        """A picture and its mask as they are stored."""

    def size(self, index: int) -> tuple[int, int]:
        """(height, width) of a picture, without decoding it."""
        _, mask, _, name = self.stored(index)
        return mask.shape if isinstance(mask, np.ndarray) else png_size(mask, name)

    def __getitem__(self, index: int) -> Example:
        """Raises MaskError where the mask is no mask, is of another size, or has ids that are no classes."""
        image, mask, name, mask_name = self.stored(index)
        ids = mask if isinstance(mask, np.ndarray) else read_mask(mask, mask_name)
        check_sizes(image, ids.shape, name)
        return Example(image, class_ids(ids, self.table, mask_name), name)


class MaskFolder(MaskSource):
    """`<folder>/images/<split>/*.jpg` and `<folder>/annotations/<split>/*.png` of the same names.

    Names of classes are those of classes.txt, one a line, or of objectInfo150.txt; else they are numbers.
    """

    def __init__(self, folder: str | os.PathLike, split: str, num_classes: int, reduce_zero_label: bool):
        root = Path(folder).expanduser()
        layout = f"expected {root}/images/training/*.jpg and {root}/annotations/training/*.png, validation likewise"
        if not root.is_dir():
            raise FileNotFoundError(f"the folder of pictures and masks {root} does not exist; {layout}")
        if not ((root / "images").is_dir() and (root / "annotations").is_dir()):
            found = sorted(path.name for path in root.iterdir() if path.is_dir())[:5]
            raise FileNotFoundError(
                f"{root} has no images/ and annotations/, but {found}; {layout}. Pictures in folders of classes become "
                "mosaics by --config.segmentation.mosaic=voronoi"
            )
        names = SPLITS.get(split, (split,))
        known = next((name for name in names if (root / "images" / name).is_dir()), None)
        if known is None:
            raise FileNotFoundError(f"{root}/images has no folder {' or '.join(names)} for {split=}; {layout}")
        self._images, self._masks = (os.fspath(root / kind / known) for kind in ("images", "annotations"))
        pictures = _stems(self._images, EXTENSIONS)
        masks = _stems(self._masks, (".png",)) if os.path.isdir(self._masks) else {}
        _check_partners(self._images, self._masks, pictures, masks)
        if not pictures:
            raise FileNotFoundError(f"{self._images} holds no pictures ({', '.join(EXTENSIONS)}); {layout}")
        self.class_names = _class_names(root, num_classes)
        self.table = id_table(len(self.class_names), reduce_zero_label=reduce_zero_label)
        # Arrays and not lists of strings: a copy of the source goes to every worker process.
        self._pictures = np.array([os.fsencode(pictures[stem]) for stem in sorted(pictures)])
        self._files = np.array([os.fsencode(masks[stem]) for stem in sorted(pictures)])

    def __len__(self) -> int:
        return len(self._pictures)

    def path(self, index: int) -> str:
        return os.path.join(self._images, os.fsdecode(self._pictures[index]))

    def mask_path(self, index: int) -> str:
        return os.path.join(self._masks, os.fsdecode(self._files[index]))

    def stored(self, index: int) -> Stored:
        path, mask_path = self.path(index), self.mask_path(index)
        with open(path, "rb") as picture, open(mask_path, "rb") as mask:
            return Stored(picture.read(), mask.read(), path, mask_path)

    def size(self, index: int) -> tuple[int, int]:
        path = self.mask_path(index)
        with open(path, "rb") as mask:
            return png_size(mask.read(32), path)


def _stems(folder: str, endings: Sequence[str]) -> dict[str, str]:
    """{name without its ending: file} of a folder, hidden files left out."""
    files = [entry.name for entry in os.scandir(folder) if not entry.name.startswith(".")]
    return {os.path.splitext(file)[0]: file for file in files if os.path.splitext(file)[1].lower() in endings}


def _check_partners(images: str, annotations: str, pictures: dict[str, str], masks: dict[str, str]) -> None:
    alone = {
        ("picture", f"without a mask in {annotations}"): sorted(pictures.keys() - masks.keys()),
        ("mask", f"without a picture in {images}"): sorted(masks.keys() - pictures.keys()),
    }
    said = [
        f"{counted(len(stems), noun)} {lack}, such as {', '.join(stems[:LISTED])}"
        for (noun, lack), stems in alone.items()
        if stems
    ]
    if said:
        raise FileNotFoundError(
            f"{'; '.join(said)}: add the missing files, x.png to x.jpg, or take their partners away"
        )


def _class_names(root: Path, num_classes: int) -> tuple[str, ...]:
    file = next((root / name for name in NAMES if (root / name).is_file()), None)
    if file is None:
        if not num_classes:
            raise ValueError(
                f"how many classes do the masks of {root} have? Set --config.model.num_classes=N, or write their names "
                f"into {root}/{NAMES[0]}, one a line"
            )
        return tuple(map(str, range(num_classes)))
    lines = [line.strip() for line in file.read_text().splitlines() if line.strip()]
    if file.name == NAMES[0]:
        return tuple(lines)
    return tuple(line.split("\t")[-1].split(",")[0] for line in lines if line[0].isdigit())


class _Set(NamedTuple):
    """How a TFDS set holds its masks."""

    feature: str
    class_names: tuple[str, ...]
    first: int
    ignored: tuple[int, ...]


TFDS_SETS = {"oxford_iiit_pet": _Set("segmentation_mask", ("pet", "background"), first=1, ignored=(3,))}


class TfdsMasks(TfdsSource, MaskSource):
    """A split of one of TFDS_SETS, as TFDS wrote it in ArrayRecord."""

    def __init__(self, name: str, split: str, root: Path):
        dataset = name.partition(":")[0].partition("/")[0]
        if dataset == "scene_parse150":
            raise ValueError(SCENE_PARSE)
        if dataset not in TFDS_SETS:
            raise ValueError(
                f"data.name={name!r} has no masks that are read here: use folder, {', '.join(TFDS_SETS)}, or mosaics "
                "of its pictures by --config.segmentation.mosaic=voronoi"
            )
        super().__init__(name, split, root)
        known = TFDS_SETS[dataset]
        self.undecoded = ("image", known.feature)
        self.class_names = known.class_names
        self.table = id_table(len(known.class_names), first=known.first, ignored=known.ignored)

    def stored(self, index: int) -> Stored:
        record, name = self.record(index)
        return Stored(record["image"], record[self.undecoded[1]], name, name)

    __getitem__ = MaskSource.__getitem__


def open_masks(
    name: str,
    split: str,
    *,
    num_classes: int,
    reduce_zero_label: bool = False,
    data_dir: str | os.PathLike | None = None,
    folder: str | os.PathLike | None = None,
    cache_dir: str | os.PathLike | None = None,
) -> MaskSource:
    """Opens a split of a set of pictures with masks.

    Args:
        name: "folder", or one of TFDS_SETS.
        split: "train", "eval", or the name that the set has for it.
        num_classes: of a folder; 0: as many as it has names for.
        reduce_zero_label: of a folder: 0 means no class, and class 0 is stored as 1, as ADE20K's challenge has it.
        data_dir, folder, cache_dir: where the set is, as in `data.sources.open_source`.

    Raises:
        FileNotFoundError: nothing or not all is there; the text names the path and what to do.
        ValueError: a set without masks, or whose masks are not what they are taken for.
    """
    if name != "folder":
        if reduce_zero_label:
            raise ValueError(
                f"segmentation.reduce_zero_label=True has no effect on data.name={name!r}, whose ids are known: leave "
                "it out"
            )
        if "://" in os.fspath(data_dir or ""):
            raise ValueError(
                f"data.data_dir={data_dir}: masks of TFDS are read from a local folder; copy the set there"
            )
        return TfdsMasks(name, split, data_root(data_dir))
    if "://" in os.fspath(folder):
        folder = bucket.copied(folder, cache_dir)
    return MaskFolder(folder, split, num_classes, reduce_zero_label)
