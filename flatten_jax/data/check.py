"""Pictures that cannot be decoded, found before a run meets them: all of a set, or those whose file ends look wrong."""

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from tqdm import tqdm

from flatten_jax.data.augment import CorruptImageError, decode
from flatten_jax.data.folder import FolderSource
from flatten_jax.data.source import Source
from flatten_jax.runtime import cores

GLANCED_AT = 50_000  # pictures of a set, evenly spread: some seconds on a local disk
LISTED = 5
READERS = 16  # threads that wait for a disk
TAIL = 4096  # bytes, because some programs write something behind the end of a picture
# How files begin, and what is near their end if they are whole.
_ENDS = {b"\xff\xd8\xff": b"\xff\xd9", b"\x89PNG\r\n\x1a\n": b"IEND", b"RIFF": b"", b"BM": b""}


def check_pictures(source: Source, progress: str = "") -> list[str]:
    """What is wrong with each picture of a set that cannot be decoded; reads and decodes all.

    Args:
        progress: shows a bar of this name.
    """

    def fault(index: int) -> str | None:
        try:
            example = source[index]
            decode(example.image, example.name)
        except (CorruptImageError, OSError) as error:
            return str(error)
        return None

    indices: Iterable[int] = tqdm(range(len(source)), desc=progress, unit="picture", disable=not progress)
    return list(in_threads(fault, indices, cores()))


def glance(source: Source, process_index: int = 0, process_count: int = 1, way_out: str = "") -> None:
    """Look at the first and last bytes of a folder's pictures, and decode those that look wrong.

    Args:
        process_index, process_count: each process looks at its share of them.
        way_out: what the error says besides, of what else can be done.

    Raises:
        ValueError: some cannot be decoded; names them.
    """
    if not isinstance(source, FolderSource):
        return
    indices = np.linspace(0, len(source) - 1, min(len(source), GLANCED_AT)).astype(int)[process_index::process_count]

    def fault(index: int) -> str | None:
        path = source.path(index)
        try:
            if not _looks_whole(path):
                decode(source[index].image, path)
        except (CorruptImageError, OSError) as error:
            return str(error)
        return None

    faults = list(in_threads(fault, indices.tolist(), READERS))
    if faults:
        more = f"\n  and {len(faults) - LISTED} more" if len(faults) > LISTED else ""
        listed = "".join(f"\n  {fault}" for fault in faults[:LISTED])
        raise ValueError(
            f"{len(faults)} of {len(indices):,} pictures cannot be read:{listed}{more}\n"
            f"`flatten-jax check-data` lists all{way_out}"
        )


def in_threads(look: Callable[[int], Any], indices: Iterable[int], threads: int) -> Iterator[Any]:
    """What `look` gives of each index, in order, but for what is None."""
    with ThreadPoolExecutor(threads) as pool:
        # Not all at once: a queue of a million would be filled before the first answer is looked at.
        block: list[int] = []
        for index in indices:
            block.append(index)
            if len(block) == 64 * threads:
                yield from _given(pool.map(look, block))
                block = []
        yield from _given(pool.map(look, block))


def _given(answers: Iterable[Any]) -> Iterator[Any]:
    return (answer for answer in answers if answer is not None)


def _looks_whole(path: str) -> bool:
    with open(path, "rb") as file:
        start = file.read(16)
        file.seek(max(0, os.fstat(file.fileno()).st_size - TAIL))
        end = file.read()
    kind = next((kind for kind in _ENDS if start.startswith(kind)), None)
    if kind == b"RIFF":  # its length is in its header
        return int.from_bytes(start[4:8], "little") + 8 <= os.path.getsize(path)
    return kind is not None and _ENDS[kind] in end
