"""Builds data sets once, as ArrayRecord: `flatten-jax prepare imagenet2012 --manual_dir ... --data_dir ...`.

The builder is TFDS's own. TensorFlow is needed here and nowhere else: `pip install 'flatten_jax[prepare]'`.
"""

import contextlib
import fcntl
import importlib.util
import logging
import os
import re
import shutil
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from flatten_jax.data.sources import TfdsSource, data_root, open_tfds, prepared_versions

IMAGENET = "imagenet2012"
TRAIN_TAR, VALIDATION_TAR = "ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar"
GENUINE_SIZES = {IMAGENET: {"train": 1_281_167, "validation": 50_000}}  # Russakovsky et al. 2015, table 2
TRAIN_LAYOUT = "it has to hold one tar per class (n01440764.tar, ...), each of which holds that class's JPEG files"
VALIDATION_LAYOUT = "it has to hold the JPEG files themselves (ILSVRC2012_val_00000001.JPEG, ...), in no folder"
BLOCK = 512  # tar pads headers and files to this many bytes


def prepare(
    name: str, *, manual_dir: str | os.PathLike | None = None, data_dir: str | os.PathLike | None = None
) -> dict[str, int]:
    """Builds a data set below `data_dir` unless it is there, and prints what there is.

    Args:
        name: "imagenet2012", "digits" or another TFDS set, which is downloaded.
        manual_dir: where the tars of ImageNet lie.
        data_dir: default $TFDS_DATA_DIR, else ~/tensorflow_datasets.

    Returns:
        the number of examples of each split.

    Raises:
        FileNotFoundError: a tar is missing, or a set that is there is damaged.
        ValueError: a tar is not what it should be, the disk is too small, another process builds the set, TFDS failed.
        ModuleNotFoundError: TensorFlow is not installed.
    """
    root = data_root(data_dir)
    if name in ("folder", "synthetic"):
        raise ValueError(f"the data source {name!r} needs no preparation")
    if prepared_versions(name, root):
        print(f"{name} is already prepared; nothing to do", flush=True)
    elif name == "digits":
        from flatten_jax.data import digits  # imports tensorflow_datasets, which is slow

        digits.build_once(root)
    else:
        _build(name, manual_dir and Path(manual_dir).expanduser(), root)
    return _report(name, root)


def _report(name: str, root: Path) -> dict[str, int]:
    builder = open_tfds(name, root)
    sizes = {split: len(TfdsSource(name, split, root)) for split in builder.info.splits}
    genuine = GENUINE_SIZES.get(name.partition(":")[0], {})
    counts = [f"{sizes.get(split, 0):,} of {size:,} {split} images" for split, size in genuine.items()]
    counts += [f"{size:,} {split} images" for split, size in sizes.items() if split not in genuine]
    print(f"{name} in {builder.data_dir}: {', '.join(counts)}", flush=True)
    if any(sizes.get(split) != size for split, size in genuine.items()):
        print(f"this is not the whole of {name}: figures from it compare with nobody's", flush=True)
    return sizes


def _build(name: str, manual_dir: Path | None, root: Path) -> None:
    dataset = name.partition(":")[0]
    if dataset == IMAGENET:
        if manual_dir is None:
            raise ValueError(f"{name} needs --manual_dir, the folder with {TRAIN_TAR} and {VALIDATION_TAR}")
        check_imagenet_tars(manual_dir)
    if importlib.util.find_spec("tensorflow") is None:
        raise ModuleNotFoundError(f"building {name} needs TensorFlow: pip install 'flatten_jax[prepare]'")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    import tensorflow_datasets as tfds

    try:
        builder = tfds.builder(name, data_dir=root, file_format="array_record")
    except tfds.core.registered.DatasetNotFoundError:
        raise ValueError(f"TFDS knows no data set {name!r}") from None
    folder = root / dataset
    folder.mkdir(parents=True, exist_ok=True)
    with _only_builder(folder):
        for rest in folder.glob("incomplete.*"):
            print(f"removing what an interrupted build left: {rest}", flush=True)
            shutil.rmtree(rest)
        if dataset == IMAGENET:
            _check_space(manual_dir, root)
        print(f"building {name} in {builder.data_dir}", flush=True)
        logging.getLogger("absl").setLevel(
            logging.ERROR
        )  # TFDS warns that the test split, which nobody has, is missing
        try:
            builder.download_and_prepare(download_config=tfds.download.DownloadConfig(manual_dir=manual_dir))
        except Exception as error:  # whatever tarfile, TensorFlow and the file system raise
            culprit = _broken_class_tar(manual_dir / TRAIN_TAR) if dataset == IMAGENET else None
            reason = culprit or f"{type(error).__name__}: {error}"
            raise ValueError(f"building {name} failed, and what it wrote was removed: {reason}") from error
    sizes = {split: info.num_examples for split, info in builder.info.splits.items()}
    # TFDS also takes a damaged header in the middle of a class for the end of that class.
    if (
        dataset == IMAGENET
        and sizes != GENUINE_SIZES[IMAGENET]
        and (damage := _broken_class_tar(manual_dir / TRAIN_TAR))
    ):
        raise ValueError(f"{builder.data_dir} lacks pictures: {damage}, delete that folder and prepare the set again")


@contextlib.contextmanager
def _only_builder(folder: Path) -> Iterator[None]:
    """Holds a lock that the system releases even if this process is killed."""
    with open(folder / ".prepare.lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"another process is building in {folder}: wait for it") from None
        yield


def _check_space(manual_dir: Path, root: Path) -> None:
    # The records are as large as the tars. TFDS sorts them on disk, and deletes each bucket once it is written.
    needed = sum((manual_dir / tar).stat().st_size for tar in (TRAIN_TAR, VALIDATION_TAR))
    free = shutil.disk_usage(root).free
    if free < needed:
        raise ValueError(f"{root} has {free / 1e9:.1f} GB free, {needed / 1e9:.1f} GB are needed: choose another disk")


def check_imagenet_tars(manual_dir: Path) -> None:
    """Finds, by reading headers only, what TFDS would find after hours or not at all.

    TFDS takes a tar whose end is missing for a shorter one, and validation files in a folder for other labels.

    Raises:
        FileNotFoundError: a tar is missing.
        ValueError: not a tar, cut off, damaged, or of another layout; the text names the file.
    """
    for tar, layout in ((TRAIN_TAR, TRAIN_LAYOUT), (VALIDATION_TAR, VALIDATION_LAYOUT)):
        if not (manual_dir / tar).is_file():
            raise FileNotFoundError(
                f"{manual_dir / tar} does not exist; --manual_dir needs {TRAIN_TAR} and {VALIDATION_TAR} "
                f"from https://image-net.org, and as for {tar}, {layout}"
            )
    with open(manual_dir / TRAIN_TAR, "rb") as file:
        members = _members(file, str(manual_dir / TRAIN_TAR), TRAIN_LAYOUT, r"(\./)?n\d{8}\.tar")
        for member in (members[0], members[-1]):
            _check_class_tar(file, member, manual_dir / TRAIN_TAR)
    with open(manual_dir / VALIDATION_TAR, "rb") as file:
        members = _members(file, str(manual_dir / VALIDATION_TAR), VALIDATION_LAYOUT, r"[^/]+\.(?i:jpe?g)")
    names = sorted(member.name for member in members)
    if names != [f"ILSVRC2012_val_{number:08d}.JPEG" for number in range(1, len(names) + 1)]:
        print(f"warning: {VALIDATION_TAR} lacks files or has other names. TFDS gives labels by position in the sorted")
        print("names, so that accuracy on these pictures will mean nothing", flush=True)


def _check_class_tar(train_tar: BinaryIO, member: tarfile.TarInfo, path: Path) -> None:
    with tarfile.open(fileobj=train_tar, mode="r:") as tar:
        _members(tar.extractfile(member), f"{member.name} inside {path}", TRAIN_LAYOUT, r"(\./)?[^/]+\.(?i:jpe?g)")


def _broken_class_tar(train_tar: Path) -> str | None:
    """Says what is wrong with the first damaged tar inside the training tar. Reads the headers of all pictures."""
    try:
        with open(train_tar, "rb") as file:
            for member in _members(file, str(train_tar), TRAIN_LAYOUT, r"(\./)?n\d{8}\.tar"):
                _check_class_tar(file, member, train_tar)
    except ValueError as error:
        return str(error)
    return None


def _members(file: BinaryIO, what: str, layout: str, pattern: str) -> list[tarfile.TarInfo]:
    """The headers of a tar, after checking that it ends properly and that all its names match `pattern`."""
    file.seek(0)
    head = file.read(BLOCK)
    if not head:
        raise ValueError(f"{what} is empty; {layout}")
    if head.lstrip()[:1] == b"<":
        raise ValueError(f"{what} is a web page and not a tar: the download needs a login; {layout}")
    if head[:2] == b"\x1f\x8b":
        raise ValueError(f"{what} is compressed: unpack it with gunzip; {layout}")
    file.seek(0)
    members = []
    try:
        with tarfile.open(fileobj=file, mode="r:") as tar:
            for member in tar:
                members.append(member)
    except tarfile.ReadError as error:
        if not members:
            raise ValueError(f"{what} is not a tar ({error}); {layout}") from error
        raise ValueError(f"{what} is cut off inside {members[-1].name}: download it again") from error
    if not members:
        raise ValueError(f"{what} is a tar without files; {layout}")
    if wrong := [member.name for member in members if not (member.isfile() and re.fullmatch(pattern, member.name))]:
        raise ValueError(f"{what} holds {wrong[:3]}; {layout}. Use the tars as they were downloaded")
    # tarfile takes both a missing end and a header that makes no sense for the end of the tar.
    last = members[-1]
    end = last.offset_data + -(-last.size // BLOCK) * BLOCK
    file.seek(end)
    mark = file.read(BLOCK)
    if len(mark) < BLOCK:
        raise ValueError(f"{what} is cut off after {last.name}: download it again")
    if any(mark):
        raise ValueError(f"{what} is damaged at byte {end}, after {last.name}: download it again")
    return members
