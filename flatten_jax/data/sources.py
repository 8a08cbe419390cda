"""Sources by name: data sets that TFDS prepared, the digits, a folder of pictures, generated pictures."""

import difflib
import math
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from flatten_jax import paths
from flatten_jax.data import bucket
from flatten_jax.data.folder import FolderSource
from flatten_jax.data.source import Example, Source
from flatten_jax.lra import sources as lra

KNOWN = ("imagenet2012", "digits", "folder", "synthetic", *lra.SOURCES)  # those that the documents speak of
NAME_FEATURES = ("file_name", "filename", "image/filename")


def open_source(
    name: str,
    split: str,
    *,
    data_dir: str | os.PathLike | None = None,
    folder: str | os.PathLike | None = None,
    cache_dir: str | os.PathLike | None = None,
    image_size: int | tuple[int, int] | None = None,
    num_classes: int | None = None,
    examples: int | None = None,
    hold_out: bool | None = None,
) -> Source:
    """Opens a split of a data set, and fails now rather than at the first batch when files are missing.

    Args:
        name: "imagenet2012" or another image-classification set of TFDS ("cifar10", "set/config", "set:1.0.0"),
            "digits", "folder", "synthetic", or Long Range Arena's "lra_image", "pathfinder" or "listops".
        split: "train", or "eval" for whichever evaluation split the set has; TFDS sets and folders also take the name
            of a split, TFDS a slice such as "train[:10%]".
        data_dir: for TFDS and digits, the folder that holds one folder per data set.
            Default: $TFDS_DATA_DIR, else ~/tensorflow_datasets.
        folder: for "folder", the folder that holds `train/<class>/*.jpg` and `val` or `test` likewise; for the arena's,
            see `lra.sources`.
        cache_dir: where `data_dir` or `folder` is in a bucket, gs://: a local folder that the data are copied to, once.
        hold_out: for "folder": evaluate on a part of "train" where there is no other set (default).
        image_size, num_classes, examples: for "synthetic"; default 32 pixels, 10 classes, 320 examples. Of them
            "pathfinder" takes the first and the last without a folder, "listops" the last.

    Raises:
        FileNotFoundError: nothing or not all is there; the text names the path and what to do.
        ValueError: an unknown split, an option of another source, a folder with another layout.
    """
    given = {"folder": folder, "image_size": image_size, "num_classes": num_classes, "examples": examples}
    given["hold_out"] = hold_out
    made = ("folder",) if folder else ("image_size", "examples") if name == "pathfinder" else ("examples",)
    takes = {
        "folder": ("folder", "hold_out"),
        "synthetic": ("image_size", "num_classes", "examples"),
        "lra_image": ("folder",),
        "pathfinder": made,
        "listops": made,
    }.get(name, ())
    for option, value in given.items():
        if value is not None and option not in takes:
            raise ValueError(f"{option}={value!r} is not an option of the data source {name!r}: leave it out")
    if name == "synthetic":
        return SyntheticSource(split, image_size or 32, num_classes or 10, examples or 320)
    if name in lra.SOURCES:
        side = image_size if isinstance(image_size, int) or image_size is None else image_size[0]
        return lra.open_lra(name, split, folder, examples, side)
    if name == "folder":
        if folder is None:
            raise ValueError("the data source 'folder' needs folder=PATH, a folder with train/<class>/*.jpg in it")
        if "://" in os.fspath(folder):
            folder = bucket.copied(folder, cache_dir)
        return FolderSource(folder, split, hold_out is not False)
    if "://" in (address := data_address(data_dir)):
        return TfdsSource(name, split, _copied_set(name, address, cache_dir))
    root = data_root(data_dir)
    if name == "digits":
        from flatten_jax.data import digits  # imports tensorflow_datasets, which is slow

        digits.build_once(root)
    return TfdsSource(name, split, root)


def data_address(data_dir: str | os.PathLike | None) -> str:
    """What is said to hold one folder per TFDS data set: `data_dir`, $TFDS_DATA_DIR or ~/tensorflow_datasets."""
    return os.fspath(data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets")


def data_root(data_dir: str | os.PathLike | None) -> Path:
    """The folder of `data_address`."""
    return Path(data_address(data_dir)).expanduser()


def _copied_set(name: str, address: str, cache_dir: str | os.PathLike | None) -> Path:
    """The local folder that holds the newest version of a TFDS set that is in a bucket."""
    bucket.check(address, cache_dir)
    versions = prepared_versions(name, paths.path_of(address))
    if not versions:
        raise FileNotFoundError(f"no data set {name}: {address} holds no version folder such as {name}/1.0.0")
    return bucket.copied(versions[-1], cache_dir).parents[len(Path(name.partition(":")[0]).parts)]


def prepare_command(name: str, root: Path) -> str:
    """The shell command that prepares a TFDS set below `root`."""
    tars = " --manual_dir DIR_WITH_THE_TARS" if name.startswith("imagenet2012") else ""
    return f"flatten-jax prepare {name}{tars} --data_dir {root}"


def prepared_versions(name: str, root: Any) -> list[Any]:
    """The version folders of a TFDS set below `root`, oldest first. TFDS moves one there when it is complete."""
    dataset, _, version = name.partition(":")
    folders = [path for path in (root / dataset).glob("*") if re.fullmatch(r"\d+\.\d+\.\d+", path.name)]
    folders = [path for path in folders if version in ("", path.name)]
    return sorted(folders, key=lambda path: tuple(map(int, path.name.split("."))))


class TfdsSource(Source):
    """A split of a data set that TFDS wrote as ArrayRecord. Files stay undecoded, and TensorFlow is not needed."""

    undecoded: tuple[str, ...] = ("image",)  # features that are files of pictures

    def __init__(self, name: str, split: str, root: Path):
        builder = open_tfds(name, root)
        features, splits = builder.info.features, builder.info.splits
        if split == "eval":
            split = next((known for known in ("validation", "test") if known in splits), split)
        if split.partition("[")[0] not in splits:
            raise ValueError(f"{name} in {builder.data_dir} has no {split=}; it has {sorted(splits)}")
        if not {"image", "label"} <= set(features):
            raise ValueError(f"{name} is not an image-classification set: its features are {sorted(features)}")
        _check_shards(name, root, builder.data_dir, splits[split.partition("[")[0]])
        self.name = f"{builder.info.full_name}/{split}"
        self.class_names = tuple(features["label"].names)
        self._folder, self._split = os.fspath(builder.data_dir), split
        self._name_feature = next((feature for feature in NAME_FEATURES if feature in features), None)
        self._length = splits[split].num_examples
        self._records = None

    def __len__(self) -> int:
        return self._length

    def record(self, index: int) -> tuple[dict[str, Any], str]:
        """(features of an example, files among them undecoded, what to call it)."""
        if self._records is None:
            import tensorflow_datasets as tfds

            decoders = {feature: tfds.decode.SkipDecoding() for feature in self.undecoded}
            self._records = tfds.builder_from_directory(self._folder).as_data_source(self._split, decoders=decoders)
        try:
            record = self._records[index]
        except Exception as error:  # of the ArrayRecord reader, which does not say which file
            error.add_note(f"while reading example {index} of {self.name} in {self._folder}")
            raise
        name = record[self._name_feature].decode() if self._name_feature else f"{self.name}/{index}"
        return record, name

    def __getitem__(self, index: int) -> Example:
        record, name = self.record(index)
        image = record["image"]
        if isinstance(image, np.ndarray) and image.shape[-1] == 1:
            image = np.repeat(image, 3, axis=-1)
        return Example(image, int(record["label"]), name)

    def __getstate__(self):
        return self.__dict__ | {"_records": None}


def open_tfds(name: str, root: Path):
    """The TFDS builder, for reading only, of the newest prepared version of `name` below `root`.

    Raises:
        FileNotFoundError: nothing prepared, an interrupted build, or another file format than ArrayRecord.
    """
    dataset = name.partition(":")[0]
    folder = root / dataset
    command = prepare_command(name, root)
    if not folder.is_dir():
        hint = f" ({root} is itself {dataset}: pass the folder around it)" if root.name == dataset else ""
        missing = folder if root.is_dir() else root
        close = difflib.get_close_matches(name.lower(), KNOWN, n=1)
        hint += f"; did you mean {close[0]!r}?" if close and close[0] != name else ""
        raise FileNotFoundError(f"no data set {name}: {missing} does not exist{hint}. Prepare it with: {command}")
    versions = prepared_versions(name, root)
    if not versions:
        found = sorted(path.name for path in folder.iterdir())
        state = f"holds {found} and no version folder such as 1.0.0" if found else "is empty"
        if any(entry.startswith("incomplete.") for entry in found):
            state = "holds only the remains of an interrupted build"
        raise FileNotFoundError(f"no data set {name}: {folder} {state}. Prepare it with: {command}")
    newest = versions[-1]
    import tensorflow_datasets as tfds

    try:
        builder = tfds.builder_from_directory(newest)
        file_format = builder.info.file_format.value
    except Exception as error:  # TFDS raises what its JSON and protobuf readers raise
        raise FileNotFoundError(_damaged(name, newest, f"its description cannot be read ({error!r})", root)) from error
    if file_format != "array_record":
        raise FileNotFoundError(
            f"{name} in {newest} was built as {file_format}, which has no random access; array_record is needed. "
            f"Prepare it in another folder with: {prepare_command(name, Path('OTHER_DIR'))}"
        )
    return builder


def _check_shards(name: str, root: Path, folder: str | os.PathLike, split) -> None:
    """Compares the number of records in each file with the description: 0.1 ms each, and half a copy is found."""
    from array_record.python.array_record_module import ArrayRecordReader

    def is_whole(path: str, length: int) -> bool:
        if not (os.path.isfile(path) and os.path.getsize(path)):
            return False
        try:
            reader = ArrayRecordReader(path)
            records = reader.num_records()  # 0 for a file without its end, and close() raises
            reader.close()
        except RuntimeError:
            return False
        return records == length

    shards = [os.fspath(path) for path in split.filepaths]
    broken = [path for path, length in zip(shards, split.shard_lengths, strict=True) if not is_whole(path, length)]
    if broken or not shards:
        state = f"{len(broken)} of {len(shards)} files of its split {split.name} are missing or cut off {broken[:1]}"
        raise FileNotFoundError(_damaged(name, folder, state, root))


def _damaged(name: str, folder: str | os.PathLike, state: str, root: Path) -> str:
    command = prepare_command(name, root)
    return f"the data set {name} in {folder} is damaged: {state}. Delete that folder and prepare it with: {command}"


@dataclass(frozen=True)
class SyntheticSource(Source):
    """Generated pictures for smoke runs: coloured stripes whose angle and hue tell the class, under noise.

    A picture is a function of the split and its index.
    """

    split: str
    image_size: int | tuple[int, int]
    num_classes: int
    examples: int

    def __post_init__(self):
        if self.split not in ("train", "eval"):
            raise ValueError(f"split={self.split!r} of the synthetic source has to be 'train' or 'eval'")
        if self.num_classes < 1 or self.examples < 1:
            raise ValueError(f"num_classes={self.num_classes} and examples={self.examples} have to be at least 1")

    @property
    def class_names(self) -> tuple[str, ...]:
        return tuple(f"stripes{label}" for label in range(self.num_classes))

    def __len__(self) -> int:
        return self.examples

    def __getitem__(self, index: int) -> Example:
        size = (self.image_size, self.image_size) if isinstance(self.image_size, int) else self.image_size
        label = index % self.num_classes
        rng = np.random.default_rng([self.split == "eval", index])
        turn = label / self.num_classes
        y, x = np.meshgrid(*(np.linspace(-1, 1, side) for side in size), indexing="ij")
        across = x * math.cos(math.pi * turn) + y * math.sin(math.pi * turn)
        stripes = 0.5 + 0.5 * np.sin(3 * math.pi * across + rng.uniform(0, 2 * math.pi))
        colour = 0.5 + 0.5 * np.cos(2 * math.pi * (turn + np.arange(3) / 3))
        picture = 255 * stripes[..., None] * colour + rng.normal(0, 16, (*size, 3))
        return Example(np.clip(picture, 0, 255).astype(np.uint8), label, f"synthetic/{self.split}/{index}")
