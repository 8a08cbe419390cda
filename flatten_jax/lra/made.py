"""Sets of pictures and sequences that are made here: in memory, or once on disk, in parts that several processes make.

A folder holds `dataset.json`, what it was made of, and `part-00000.npy`, ..., each with the same number of records. An
interrupted command goes on with the parts that are missing.
"""

import json
import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from flatten_jax.lra import listops, pathfinder

DESCRIPTION = "dataset.json"


class Made(NamedTuple):
    """What a set is made of.

    Attributes:
        task: "pathfinder" or "listops".
        count: examples.
        seed: of all of them; each has its own index besides.
        size, difficulty: of Pathfinder's pictures; of others 0 and "".
        part: records of a file.
    """

    task: str
    count: int
    seed: int = 0
    size: int = 0
    difficulty: str = ""
    part: int = 500

    def check(self) -> None:
        """ValueError where there is no such set."""
        if self.count < 1 or self.seed < 0 or self.part < 1:
            raise ValueError(f"count={self.count} and part={self.part} must be at least 1, seed={self.seed} at least 0")
        if self.task == "pathfinder":
            pathfinder.check(self.size, self.difficulty)

    @property
    def record(self) -> np.dtype:
        """An example as it is stored."""
        if self.task == "pathfinder":
            return np.dtype([("label", "u1"), ("image", "u1", (self.size, self.size))])
        return np.dtype([("label", "u1"), ("length", "<u2"), ("tokens", "u1", (listops.LONGEST,))])

    @property
    def parts(self) -> int:
        return -(-self.count // self.part)

    def indices(self, part: int) -> range:
        return range(part * self.part, min(self.count, (part + 1) * self.part))


def records(made: Made, indices: range) -> np.ndarray:
    """Examples of a set: (len(indices),) of `made.record`."""
    found = np.zeros(len(indices), made.record)
    for place, index in enumerate(indices):
        if made.task == "pathfinder":
            found[place] = pathfinder.picture(made.size, made.difficulty, made.seed, index)[::-1]
        else:
            _put_sequence(found[place : place + 1], *listops.sequence(made.seed, index))
    return found


def write(made: Made, folder: str | os.PathLike, workers: int) -> Iterator[int]:
    """Makes a set in a folder, or what is missing of it.

    Args:
        workers: processes; 1: this one. What is written does not depend on them.

    Yields:
        how many examples there are, after every part.

    Raises:
        ValueError: there is no such set; the folder holds another one, or other files.
    """
    made.check()
    if workers < 1:
        raise ValueError(f"{workers=} must be at least 1")
    root = Path(folder).expanduser()
    if (root / DESCRIPTION).is_file():
        differs = [f"{k}={v!r} there, {w!r} now" for k, v, w in _differences(read(root), made)]
        if differs:
            raise ValueError(f"{root} holds another set ({'; '.join(differs)}): choose another folder")
    elif root.exists() and any(root.iterdir()):
        raise ValueError(f"{root} is not empty, and holds no set that was made here: choose another folder")
    root.mkdir(parents=True, exist_ok=True)
    _replace(root / DESCRIPTION, (json.dumps(made._asdict(), indent=2) + "\n").encode())
    missing = [part for part in range(made.parts) if not _is_whole(made, root, part)]
    done = made.count - sum(len(made.indices(part)) for part in missing)
    yield done
    if workers == 1 or len(missing) < 2:
        for part in missing:
            yield (done := done + _write_part(made, root, part))
    else:
        # Not forked: JAX may have threads here.
        with ProcessPoolExecutor(min(workers, len(missing)), get_context("spawn")) as pool:
            try:
                for count in pool.map(_write_part, [made] * len(missing), [root] * len(missing), missing):
                    yield (done := done + count)
            finally:
                pool.shutdown(cancel_futures=True)
    if made.task == "listops" and missing:
        _drop_duplicates(made, root)


def read(folder: str | os.PathLike) -> Made:
    """What the set in a folder is made of.

    Raises:
        FileNotFoundError: there is none.
        ValueError: its description cannot be read.
    """
    path = Path(folder).expanduser() / DESCRIPTION
    if not path.is_file():
        raise FileNotFoundError(f"{path.parent} holds no {DESCRIPTION}: make a set with flatten-jax lra TASK --out DIR")
    try:
        made = Made(**json.loads(path.read_text()))
        made.check()
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path} does not describe a set that was made here ({error})") from error
    return made


def open_parts(made: Made, folder: str | os.PathLike) -> list[np.ndarray]:
    """The records of all parts, mapped into memory.

    Raises:
        FileNotFoundError: parts are missing, or damaged.
    """
    root = Path(folder).expanduser()
    missing = [part for part in range(made.parts) if not _is_whole(made, root, part)]
    if missing:
        raise FileNotFoundError(
            f"{len(missing)} of {made.parts} parts of the set in {root} are missing or cut off, such as "
            f"{_name(missing[0])}: {command(made, root)} makes them"
        )
    return [np.load(root / _name(part), mmap_mode="r") for part in range(made.parts)]


def command(made: Made, folder: str | os.PathLike) -> str:
    """The shell command that makes a set."""
    own = f" --size {made.size} --difficulty {made.difficulty}" if made.task == "pathfinder" else ""
    return f"flatten-jax lra {made.task}{own} --count {made.count} --seed {made.seed} --out {folder}"


def _write_part(made: Made, root: Path, part: int) -> int:
    found = records(made, made.indices(part))
    _save(root / _name(part), found)
    return len(found)


def _drop_duplicates(made: Made, root: Path) -> None:
    """Draws sequences anew that were in the set before. Of 500 tokens and more, no two were ever seen to be equal."""
    seen: set[bytes] = set()
    for part in range(made.parts):
        found, changed = np.load(root / _name(part)), False
        for place, index in enumerate(made.indices(part)):
            draw = 0
            while (key := found["tokens"][place].tobytes()) in seen:
                draw, changed = draw + 1, True
                _put_sequence(found[place : place + 1], *listops.sequence(made.seed, index, draw))
            seen.add(key)
        if changed:
            _save(root / _name(part), found)


def _put_sequence(record: np.ndarray, tokens: np.ndarray, value: int) -> None:
    record["label"], record["length"] = value, len(tokens)
    record["tokens"] = 0
    record["tokens"][0, : len(tokens)] = tokens


def _name(part: int) -> str:
    return f"part-{part:05d}.npy"


def _is_whole(made: Made, root: Path, part: int) -> bool:
    try:
        found = np.load(root / _name(part), mmap_mode="r")
    except (OSError, ValueError):  # of a file that is not there, or cut off
        return False
    return found.dtype == made.record and found.shape == (len(made.indices(part)),)


def _differences(there: Made, now: Made) -> list[tuple[str, Any, Any]]:
    pairs = zip(there._asdict().items(), now, strict=True)
    return [(name, old, new) for (name, old), new in pairs if old != new]


def _save(path: Path, found: np.ndarray) -> None:
    scratch = path.with_name(f".{path.name}.{os.getpid()}.npy")
    np.save(scratch, found)
    os.replace(scratch, path)


def _replace(path: Path, content: bytes) -> None:
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    scratch.write_bytes(content)
    os.replace(scratch, path)
