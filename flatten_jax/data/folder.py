"""Pictures in folders of classes, found, counted, and held out for evaluation where there is nothing else."""

import collections
import os
import zlib
from pathlib import Path

import numpy as np
from tqdm import tqdm

from flatten_jax.counted import counted
from flatten_jax.data.source import Example, Source

EXTENSIONS = (".bmp", ".jpeg", ".jpg", ".png", ".webp")
EVALUATION_FOLDERS = ("val", "valid", "validation", "test")
SLOW_SECONDS = 2  # after which the scan of a folder shows a bar, on a terminal


class FolderSource(Source):
    """`<folder>/<split>/<class>/*.jpg`. Labels are the positions of the class folders in sorted order.

    Examples are ordered by class, then by file name, so that they are the same on every machine. A folder of class
    folders alone is all "train". Where there is nothing to evaluate on, a tenth of every class is held out. Classes and
    pictures may be symbolic links. Hidden files, such as macOS's `._x.jpg`, and files of other kinds are left out.
    `note` says how many, or what was done about a missing evaluation folder: what is held out is counted with "train".
    """

    def __init__(self, folder: str | os.PathLike, split: str, hold_out: bool = True):
        root = Path(folder).expanduser()
        layout = f"expected {root}/train/<class>/*.jpg and {root}/val/<class>/*.jpg (or test)"
        if not root.is_dir():
            state = "is a file" if root.exists() else "does not exist"
            raise FileNotFoundError(f"the image folder {root} {state}; {layout}")
        evaluation = _evaluation_folder(root, split)
        train = root / "train"
        if not train.is_dir() and evaluation is None and _class_folders(root):
            train = root
        held_out = hold_out and evaluation is None and split in ("train", "eval")
        if split != "train" and evaluation is None and not held_out:
            raise FileNotFoundError(f"{root} has no folder for {split=}, but {list(_class_folders(root))}; {layout}")
        self._folder = os.fspath(train if split == "train" or held_out else evaluation)
        if not os.path.isdir(self._folder):
            raise FileNotFoundError(f"the image folder {self._folder} does not exist; {layout}")
        self.class_names = _class_folders(self._folder)
        if not self.class_names:
            loose = next((entry.name for entry in os.scandir(self._folder) if entry.is_file()), None)
            state = f"has files such as {loose} but no class folders" if loose else "is empty"
            raise ValueError(f"the image folder {self._folder} {state}; {layout}")
        if evaluation is not None and train.is_dir():
            _check_same_classes(train, evaluation)
        files, labels, count, left_out = [], [], 0, collections.Counter()
        classes = tqdm(
            self.class_names, f"looking through {self._folder}", unit=" classes", delay=SLOW_SECONDS, disable=None
        )
        for label, class_name in enumerate(classes):
            with os.scandir(os.path.join(self._folder, class_name)) as entries:
                kinds = {entry.name: _left_out(entry) for entry in entries}
            names = sorted(name for name, kind in kinds.items() if not kind)
            left_out.update(kind for kind in kinds.values() if kind)
            if not names:
                kinds = ", ".join(EXTENSIONS)
                raise ValueError(f"{self._folder}/{class_name} holds no pictures ({kinds}); {layout}")
            count += len(names)
            if held_out:
                aside = _held_out(names)
                names = [name for name in names if (name in aside) == (split != "train")]
            files += names
            labels += [label] * len(names)
        if held_out and split != "train":
            if not files:
                raise ValueError(f"{root} has one picture of each class, and none to evaluate on; {layout}")
            self.note = f"{root} has no val/ or test/: {len(files):,} of {count:,} pictures are held out of training"
        elif left_out:
            said = ", ".join(_said(kind, count) for kind, count in sorted(left_out.items()))
            self.note = f"{self._folder}: left out as no pictures: {said}"
        # Two arrays and not a million Python strings: a copy of the source goes to every worker process.
        self._files = np.array([os.fsencode(file) for file in files])
        self._labels = np.array(labels, np.int32)

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, index: int) -> Example:
        path = self.path(index)
        with open(path, "rb") as file:
            return Example(file.read(), int(self._labels[index]), path)

    def path(self, index: int) -> str:
        return os.path.join(self._folder, self.class_names[int(self._labels[index])], os.fsdecode(self._files[index]))


def _held_out(names: list[str]) -> set[str]:
    """A tenth of the pictures of a class, at least one if there are two: by a hash, so that new ones move few."""
    count = min(len(names) - 1, max(1, len(names) // 10))
    return set(sorted(names, key=lambda name: (zlib.crc32(os.fsencode(name)), name))[:count])


def _left_out(entry: os.DirEntry) -> str:
    """Why an entry of a class folder is no picture, for people; "" for a picture."""
    ending = os.path.splitext(entry.name)[1].lower()
    if entry.name.startswith("."):
        return "hidden"
    if entry.is_symlink() and not os.path.exists(entry.path):
        return "link to nothing"
    if entry.is_dir():
        return "folder"
    return "" if ending in EXTENSIONS else f"*{ending}" if ending else "without an ending"


def _said(kind: str, count: int) -> str:
    """ "2 links to nothing", "2 hidden"."""
    noun, _, rest = kind.partition(" ")
    return f"{counted(count, noun)} {rest}".rstrip() if noun in ("folder", "link") else f"{count:,} {kind}"


def _evaluation_folder(root: Path, split: str) -> Path | None:
    """The folder of a split, of any usual name where the name is a usual one; None where there is none."""
    if split in ("train", "eval", *EVALUATION_FOLDERS):
        wanted = [split] if split in EVALUATION_FOLDERS else []
        return next((root / name for name in [*wanted, *EVALUATION_FOLDERS] if (root / name).is_dir()), None)
    return root / split if (root / split).is_dir() else None


def _class_folders(folder: str | os.PathLike) -> tuple[str, ...]:
    with os.scandir(folder) as entries:
        visible = [entry for entry in entries if not entry.name.startswith(".")]
    broken = [entry.path for entry in visible if entry.is_symlink() and not os.path.exists(entry.path)]
    if broken:
        raise FileNotFoundError(f"{broken[0]} is a link to {os.readlink(broken[0])}, which is not there")
    return tuple(sorted(entry.name for entry in visible if entry.is_dir()))


def _check_same_classes(train: Path, evaluation: Path) -> None:
    ours, theirs = set(_class_folders(train)), set(_class_folders(evaluation))
    if ours != theirs:
        raise ValueError(
            f"the classes of {train} and {evaluation} differ: only in {train.name}: {sorted(ours - theirs)}; "
            f"only in {evaluation.name}: {sorted(theirs - ours)}"
        )
