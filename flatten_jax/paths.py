"""Paths that may be addresses: gs://bucket/folder of Google Cloud Storage, beside those of this machine.

Local paths stay `pathlib.Path`. An address becomes `etils.epath.Path`, which Orbax uses too, over gcsfs.
"""

import contextlib
import functools
import importlib.util
import logging
import os
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

SCHEME = "gs://"
SLOW_SECONDS = 10  # after which a bucket that does not answer is spoken of
# Read by libraries as they are imported. Buckets have one client here, with or without TensorFlow, and no experiments.
os.environ.setdefault("EPATH_USE_TF", "false")
os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")


def is_bucket(path: str | os.PathLike) -> bool:
    return os.fspath(path).startswith(SCHEME)


def path_of(path: str | os.PathLike) -> Any:
    """A `pathlib.Path`, or for gs:// an `epath.Path`, whose methods are the same.

    Raises:
        ImportError: gs://, and gcsfs is not installed.
        ValueError: an address of another kind, of which a local folder "s3:" would be made.
    """
    if not is_bucket(path):
        if "://" in os.fspath(path):
            raise ValueError(f"{os.fspath(path)}: of addresses only {SCHEME} is read and written; mount it, or copy it")
        return Path(path)
    _connect()
    from etils import epath

    return epath.Path(path)


def local(path: str | os.PathLike, name: str = "") -> Path:
    """A path of this machine; ValueError for an address where only such a path will do."""
    if "://" in os.fspath(path):
        said = f"{name}={os.fspath(path)}" if name else os.fspath(path)
        raise ValueError(f"{said}: a bucket is not read or written here; mount it (gcsfuse), or use a local path")
    return Path(path)


def check(name: str, path: str) -> None:
    """ValueError, ImportError or OSError, in one line, unless a path may be used: local, or a bucket that answers."""
    try:
        address = path_of(path)
        if is_bucket(path):
            said = f"waiting for an answer from {path}: is there a network?"  # the client tries for a minute or two
            reminder = threading.Timer(SLOW_SECONDS, print, [said], {"file": sys.stderr, "flush": True})
            reminder.daemon = True
            reminder.start()
            try:
                address.exists()
            finally:
                reminder.cancel()
    except ValueError as error:
        raise ValueError(f"{name}={error}") from error
    except ImportError as error:
        raise ImportError(f"{name}={error}") from error
    except Exception as error:  # of the client's many kinds
        raise OSError(f"{name}={path} cannot be reached: {first_line(error)}") from error


def absolute(path: Any) -> Any:
    return path if is_bucket(path) else path.resolve()


def write_text(path: Any, text: str) -> None:
    """Whole or not at all, also where a process is killed meanwhile; an object of a bucket always is.

    The folder is made.
    """
    if is_bucket(path):
        path.write_text(text)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(text)
    temporary.replace(path)


@contextlib.contextmanager
def writing(target: str | os.PathLike) -> Iterator[Path]:
    """A path of this machine to write a file to, or a folder: the target itself, or one that is copied there after."""
    if not is_bucket(target):
        yield Path(target)
        return
    target = path_of(target)
    with tempfile.TemporaryDirectory() as scratch:
        place = Path(scratch) / target.name
        yield place
        for file in sorted(place.rglob("*")) if place.is_dir() else [place]:
            if file.is_file():
                (target / file.relative_to(place) if file != place else target).write_bytes(file.read_bytes())


def fetched(path: Any, names: Sequence[str] = ()) -> Path:
    """A local path with the same content: itself, or a copy that lives as long as this process.

    Args:
        path: a file, or a folder whose files `names` are wanted, as far as they are there.
    """
    if not is_bucket(path):
        return path
    target = Path(tempfile.mkdtemp(dir=_scratch().name)) / path.name
    for source, copy in [(path / name, target / name) for name in names] if names else [(path, target)]:
        if source.exists():
            copy.parent.mkdir(parents=True, exist_ok=True)
            filesystem().get_file(str(source), str(copy))
    return target


def filesystem() -> Any:
    """The client of all buckets."""
    _connect()
    import fsspec

    return fsspec.filesystem("gcs", finalize_on_close=True)  # the one that epath has


def first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


@functools.cache
def _scratch() -> tempfile.TemporaryDirectory:
    return tempfile.TemporaryDirectory(prefix="flatten_jax-")


@functools.cache
def _connect() -> None:
    if importlib.util.find_spec("gcsfs") is None:
        raise ImportError(f"{SCHEME}... needs gcsfs, which is not installed: pip install 'flatten_jax[gcs]'")
    import fsspec.config

    # Checkpoints are written by another client: a list that is remembered would not have them.
    fsspec.config.conf.setdefault("gcs", {})["use_listings_cache"] = False
    logging.getLogger("gcsfs").setLevel(logging.CRITICAL)  # what fails is raised as well, and said by us
