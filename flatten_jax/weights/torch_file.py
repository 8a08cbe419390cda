"""Weights in files, read without PyTorch: `.pth`, `.pt`, `.bin` (zip or older form), `.safetensors`, and `.npz`."""

import html
import io
import os
import re
import struct
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, BinaryIO

import numpy as np

from flatten_jax.weights.array_files import AGAIN, check_size, read_npz, read_safetensors
from flatten_jax.weights.containers import Weights, weights_in
from flatten_jax.weights.names import unwrapped
from flatten_jax.weights.pickle_values import NumpyArray, RefusedError, Storage, UnpickleError
from flatten_jax.weights.unpickle import Unpickled, unpickle

_MAGIC = 0x1950A86A20F9469CFC6C  # the first pickle of the older form
_RESAVE = "open it with the PyTorch that wrote it and save it again: torch.save(model.state_dict(), path)"


@dataclass(frozen=True)
class FileInfo:
    """What a file of weights says beside the weights.

    Attributes:
        kind: "zip", "legacy", "safetensors" or "npz".
        key: the entry that held the weights, such as "model" or "model.model"; "" for the top level.
        metadata: of a safetensors file.
        extra: the other plain values at the top level: epoch, max_accuracy, config (CfgNode as dicts), args.
        notes: lines for a report, of what its reader may not expect.
        remarks: lines for a report, of what was left out and changes nothing.
    """

    kind: str
    key: str = ""
    metadata: Mapping[str, str] = field(default_factory=dict)
    extra: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()


def read_torch(
    path: str | os.PathLike, *, ema: bool = False, key: str | None = None
) -> tuple[dict[str, np.ndarray], FileInfo]:
    """A state dict out of a file, as NumPy arrays, and what else the file says. Nothing in the file is executed.

    Where the weights are looked for is said in `containers`. What wrappers write into names goes (`names.unwrapped`).
    Arrays are read-only, in the file's dtype (bfloat16 and types of eight bits as float32).

    Args:
        ema: take the moving average that the file holds.
        key: take what is there, such as "teacher", instead of looking for weights.

    Raises:
        FileNotFoundError: no such file.
        ValueError: what the file looks like instead, how it is damaged, or the name of what it asks for.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"no file of weights at {path}")
    with open(path, "rb") as file:
        start = file.read(1024)
        size = os.path.getsize(path)
        _refuse_other_files(path, start, size)
        try:
            if start.startswith(b"PK\x03\x04"):
                if path.suffix == ".npz":
                    return _plain(path, *read_npz(path, size), "npz", ema, key)
                kind, (pickled, load) = "zip", _open_zip(path, file, size)
            elif path.suffix == ".safetensors" or start[8:9] == b"{":
                return _plain(path, *read_safetensors(path, start, size), "safetensors", ema, key)
            else:
                kind, (pickled, load) = "legacy", _open_legacy(path, file, start, size)
        except RefusedError as error:
            if error.advice:
                raise ValueError(f"{path} holds {error}: {error.advice}") from error
            raise ValueError(
                f"{path} is refused: {error}. A file that asks for more than tensors can run code; nothing of it was "
                f"executed. If you trust it, {_RESAVE}"
            ) from error
        except UnpickleError as error:
            raise ValueError(f"{path} holds {error}; {AGAIN}, or {_RESAVE}") from error
        found = weights_in(str(path), pickled.content, ema=ema, key=key)
        return _info(path, kind, pickled, found, _arrays(path, size, found, load))


def _refuse_other_files(path: Path, start: bytes, size: int) -> None:
    text = start.lstrip(b"\xef\xbb\xbf \t\r\n")
    if not size:
        raise ValueError(f"{path} is empty (0 bytes); {AGAIN}")
    if re.match(rb"<(!doctype|html|head|\?xml)", text, re.IGNORECASE):
        title = re.search(rb"<title[^>]*>([^<]*)", text, re.IGNORECASE)
        said = f" ({html.unescape(title[1].decode(errors='replace')).strip()!r})" if title else ""
        raise ValueError(
            f"{path} is a web page{said} of {size} bytes, not weights: the link led to a page with a login or a "
            "confirmation; download it in a browser and look at its size"
        )
    if text.startswith(b"version https://git-lfs"):
        wanted = re.search(rb"size (\d+)", text)
        raise ValueError(
            f"{path} is a git-lfs pointer of {size} bytes; the weights themselves have "
            f"{int(wanted[1]) if wanted else '?'} bytes: run `git lfs pull` where it came from"
        )
    if start[257:262] == b"ustar":
        raise ValueError(f"{path} is a tar archive, as PyTorch before 0.4 wrote: {_RESAVE}")
    if start.startswith(b"\x1f\x8b"):
        raise ValueError(f"{path} is gzip-compressed: unpack it first")


def _open_zip(path: Path, file: BinaryIO, size: int) -> tuple[Unpickled, Callable[[Storage], bytes]]:
    try:
        archive = zipfile.ZipFile(path)
    except (zipfile.BadZipFile, RuntimeError, ValueError, struct.error) as error:
        raise ValueError(
            f"{path} is half a download: the zip archive ends too early, after {size} bytes{_zip_size(file)}; {AGAIN}"
        ) from error
    entries = {entry.filename: entry for entry in archive.infolist()}
    pickles = [name for name in entries if name.count("/") == 1 and name.endswith("/data.pkl")]
    if len(pickles) != 1 or len(entries) != len(archive.infolist()):
        raise ValueError(f"{path} is a zip archive, but not one of torch.save: {', '.join(list(entries)[:4])}, ...")
    folder = pickles[0].removesuffix("data.pkl")
    if any(name in entries or any(e.startswith(name) for e in entries) for name in (f"{folder}constants.pkl",)):
        raise ValueError(f"{path} is a TorchScript archive, a program with weights: {_RESAVE}")
    squeezed = [name for name, entry in entries.items() if entry.compress_type != zipfile.ZIP_STORED]
    if squeezed or sum(entry.file_size for entry in entries.values()) > size:
        raise ValueError(f"{path} unpacks to more than its {size} bytes, which torch.save never writes: a zip bomb?")

    def read(name: str) -> bytes:
        try:
            return archive.read(name)
        except KeyError:
            raise ValueError(f"{path} lacks its entry {name}; {AGAIN}") from None
        except (zipfile.BadZipFile, RuntimeError, EOFError, OSError, struct.error) as error:
            raise ValueError(f"{path} is damaged: {name} does not match its checksum ({error}); {AGAIN}") from error

    if f"{folder}byteorder" in entries and read(f"{folder}byteorder") != b"little":
        raise ValueError(f"{path} was saved on a big-endian machine: {_RESAVE} on an ordinary one")
    pickled = unpickle(io.BytesIO(read(pickles[0])))

    def load(storage: Storage) -> bytes:
        data = read(f"{folder}data/{storage.key}")
        if len(data) != storage.nbytes:
            raise ValueError(f"{path} is damaged: storage {storage.key} has {len(data)} bytes, not {storage.nbytes}")
        return data

    return pickled, load


def _zip_size(file: BinaryIO) -> str:
    """The first entry of torch.save is the pickle, which names all storages: so much must follow."""
    file.seek(26)
    lengths = file.read(4)
    try:
        file.seek(30 + sum(struct.unpack("<HH", lengths)))
        storages = unpickle(file).storages
    except (struct.error, UnpickleError):
        return ""
    return f", its tensors alone take {sum(storage.nbytes for storage in storages.values())} bytes"


def _open_legacy(path: Path, file: BinaryIO, start: bytes, size: int) -> tuple[Unpickled, Callable[[Storage], bytes]]:
    file.seek(0)
    try:
        magic = unpickle(file, size).content
    except RefusedError:
        raise
    except UnpickleError:
        magic = None
    if magic != _MAGIC:
        what = "a plain pickle" if start.startswith(b"\x80") else f"nothing known; it begins with {start[:16]!r}"
        raise ValueError(f"{path} ({size} bytes) is no file of torch.save nor safetensors, it is {what}")

    def following() -> Unpickled:
        return unpickle(file, size - file.tell())

    protocol, system = following().content, following().content
    if protocol != 1001 or not isinstance(system, dict):
        raise ValueError(f"{path} has an unknown form, {protocol=}: {_RESAVE}")
    if not system.get("little_endian", True):
        raise ValueError(f"{path} was saved on a big-endian machine: {_RESAVE} on an ordinary one")
    pickled, keys = following(), following().content
    storages = pickled.storages
    if not isinstance(keys, list) or sorted(map(repr, keys)) != sorted(map(repr, storages)):
        raise ValueError(f"{path} is damaged: its storages are not those of its tensors; {AGAIN}")

    begin, needed = {}, file.tell()
    for key in keys:
        begin[key] = needed + 8
        needed += 8 + storages[key].nbytes
    if needed > size:
        raise ValueError(f"{path} is half a download: {size} bytes of {needed}; {AGAIN}")

    def load(storage: Storage) -> bytes:
        file.seek(begin[storage.key] - 8)
        (count,) = struct.unpack("<q", file.read(8))
        if count != storage.size:
            raise ValueError(f"{path} is damaged: storage {storage.key} has {count} elements, not {storage.size}")
        return file.read(storage.nbytes)

    return pickled, load


def _plain(
    path: Path, arrays: dict[str, np.ndarray], metadata: Mapping[str, str], kind: str, ema: bool, key: str | None
) -> tuple[dict[str, np.ndarray], FileInfo]:
    """What files of arrays and nothing else hold."""
    if ema:
        raise ValueError(
            f"{path} is of kind {kind}: it holds one set of weights, no moving average beside it; leave ema (--ema) out"
        )
    found = weights_in(str(path), arrays, key=key)
    return _info(path, kind, Unpickled({}, {}, ()), found, found.entries, metadata)


def _arrays(path: Path, size: int, found: Weights, load: Callable[[Storage], bytes]) -> dict[str, np.ndarray]:
    check_size(path, sum(value.nbytes for value in found.entries.values()), size)
    data: dict[str, bytes] = {}
    arrays = {}
    for name, value in found.entries.items():
        if isinstance(value, NumpyArray):
            arrays[name] = value.array()
            continue
        if value.storage.key not in data:
            data[value.storage.key] = load(value.storage)
        arrays[name] = value.array(data[value.storage.key])
    return arrays


def _info(
    path: Path,
    kind: str,
    pickled: Unpickled,
    found: Weights,
    arrays: dict[str, np.ndarray],
    metadata: Mapping[str, str] = MappingProxyType({}),
) -> tuple[dict[str, np.ndarray], FileInfo]:
    arrays, remarks = unwrapped(str(path), arrays)
    top = pickled.content if isinstance(pickled.content, dict) else {}
    extra = {str(k): v for k, v in top.items() if isinstance(v, (str, int, float)) or k in ("config", "args")}
    remarks += found.remarks()
    if pickled.stand_ins:
        remarks.append(f"beside the weights, not opened: {', '.join(pickled.stand_ins)}")
    return arrays, FileInfo(kind, found.key, metadata, extra, found.notes, tuple(remarks))
