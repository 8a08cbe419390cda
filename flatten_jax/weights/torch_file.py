"""Weights in files of PyTorch, read without it: `.pth`, `.pt`, `.bin` (zip or older form) and `.safetensors`."""

import html
import io
import json
import os
import re
import struct
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import safetensors

from flatten_jax.weights.unpickle import Opaque, RefusedError, Storage, Tensor, UnpickleError, unpickle

_MAGIC = 0x1950A86A20F9469CFC6C  # the first pickle of the older form
_WEIGHTS, _EMA = ("model", "state_dict"), ("model_ema", "state_dict_ema")
_PREFIXES = re.compile(r"^(?:module\.|_orig_mod\.)+")  # of DistributedDataParallel and torch.compile
_RESAVE = "open it with the PyTorch that wrote it and save it again: torch.save(model.state_dict(), path)"
_AGAIN = "download it again"


@dataclass(frozen=True)
class FileInfo:
    """What a file of weights says beside the weights.

    Attributes:
        kind: "zip", "legacy" or "safetensors".
        key: the entry that held the weights, such as "model"; "" for the top level.
        metadata: of a safetensors file.
        extra: the other plain values at the top level: epoch, max_accuracy, config (CfgNode as dicts), args.
        notes: lines for a report.
    """

    kind: str
    key: str = ""
    metadata: Mapping[str, str] = field(default_factory=dict)
    extra: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def read_torch(path: str | os.PathLike, *, ema: bool = False) -> tuple[dict[str, np.ndarray], FileInfo]:
    """A state dict out of a file, as NumPy arrays, and what else the file says. Nothing in the file is executed.

    The weights are looked for under `model` and `state_dict` (with `ema` under `model_ema` and `state_dict_ema`), else
    at the top level; `module.` and `_orig_mod.` before the names go. Arrays are read-only, in the file's dtype
    (bfloat16 as float32).

    Raises:
        FileNotFoundError: no such file.
        ValueError: what the file looks like instead, how it is damaged, or the name of what it asks for.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no file of weights at {path}")
    with open(path, "rb") as file:
        start = file.read(1024)
        size = os.path.getsize(path)
        _refuse_other_files(path, start, size)
        try:
            if start.startswith(b"PK\x03\x04"):
                kind, (content, load) = "zip", _open_zip(path, file, size)
            elif path.suffix == ".safetensors" or start[8:9] == b"{":
                return _read_safetensors(path, start, size, ema)
            else:
                kind, (content, load) = "legacy", _open_legacy(path, file, start, size)
        except RefusedError as error:
            raise ValueError(
                f"{path} is refused: {error}. A file that asks for more than tensors can run code; nothing of it was "
                f"executed. If you trust it, {_RESAVE}"
            ) from error
        except UnpickleError as error:
            raise ValueError(f"{path} holds {error}; {_AGAIN}, or {_RESAVE}") from error
        return _arrays(path, kind, size, content, load, ema)


def _refuse_other_files(path: Path, start: bytes, size: int) -> None:
    text = start.lstrip(b"\xef\xbb\xbf \t\r\n")
    if not size:
        raise ValueError(f"{path} is empty (0 bytes); {_AGAIN}")
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


def _read_safetensors(path: Path, start: bytes, size: int, ema: bool) -> tuple[dict[str, np.ndarray], FileInfo]:
    if ema:
        raise ValueError(f"{path} is a safetensors file: it holds one set of weights, no moving average beside it")
    length = struct.unpack("<Q", start[:8])[0] if size >= 8 else size
    if 8 + length > size:
        looks = start[:16] if start[8:9] != b"{" else f"half a safetensors file: its header alone has {length} bytes"
        raise ValueError(f"{path} has {size} bytes and is no whole safetensors file: it begins with {looks}; {_AGAIN}")
    try:
        with safetensors.safe_open(path, "numpy") as file:
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
            metadata = file.metadata() or {}
    except safetensors.SafetensorError as error:
        raise ValueError(f"{path} is damaged{_safetensors_size(path, length, size)} ({error}); {_AGAIN}") from error
    arrays = {k: v.astype(np.float32) if v.dtype.name == "bfloat16" else v for k, v in arrays.items()}
    return _unprefixed(path, arrays), FileInfo("safetensors", metadata=metadata)


def _safetensors_size(path: Path, length: int, size: int) -> str:
    try:
        with open(path, "rb") as file:
            header = json.loads(file.read(8 + length)[8:])
        expected = 8 + length + max(v["data_offsets"][1] for k, v in header.items() if k != "__metadata__")
    except (ValueError, TypeError, KeyError, IndexError, AttributeError):
        return ""
    return f": {size} bytes instead of the {expected} its header names" if expected != size else ""


def _open_zip(path: Path, file: BinaryIO, size: int) -> tuple[Any, Callable[[Storage], bytes]]:
    try:
        archive = zipfile.ZipFile(path)
    except (zipfile.BadZipFile, RuntimeError, ValueError, struct.error) as error:
        raise ValueError(
            f"{path} is half a download: the zip archive ends too early, after {size} bytes{_zip_size(file)}; {_AGAIN}"
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
            raise ValueError(f"{path} lacks its entry {name}; {_AGAIN}") from None
        except (zipfile.BadZipFile, RuntimeError, EOFError, OSError, struct.error) as error:
            raise ValueError(f"{path} is damaged: {name} does not match its checksum ({error}); {_AGAIN}") from error

    if f"{folder}byteorder" in entries and read(f"{folder}byteorder") != b"little":
        raise ValueError(f"{path} was saved on a big-endian machine: {_RESAVE} on an ordinary one")
    content, _ = unpickle(io.BytesIO(read(pickles[0])))

    def load(storage: Storage) -> bytes:
        data = read(f"{folder}data/{storage.key}")
        if len(data) != storage.nbytes:
            raise ValueError(f"{path} is damaged: storage {storage.key} has {len(data)} bytes, not {storage.nbytes}")
        return data

    return content, load


def _zip_size(file: BinaryIO) -> str:
    """The first entry of torch.save is the pickle, which names all storages: so much must follow."""
    file.seek(26)
    lengths = file.read(4)
    try:
        file.seek(30 + sum(struct.unpack("<HH", lengths)))
        _, storages = unpickle(file)
    except (struct.error, UnpickleError):
        return ""
    return f", its tensors alone take {sum(storage.nbytes for storage in storages.values())} bytes"


def _open_legacy(path: Path, file: BinaryIO, start: bytes, size: int) -> tuple[Any, Callable[[Storage], bytes]]:
    file.seek(0)
    try:
        magic, _ = unpickle(file, size)
    except RefusedError:
        raise
    except UnpickleError:
        magic = None
    if magic != _MAGIC:
        what = "a plain pickle" if start.startswith(b"\x80") else f"nothing known; it begins with {start[:16]!r}"
        raise ValueError(f"{path} ({size} bytes) is no file of torch.save nor safetensors, it is {what}")

    def following() -> Any:
        return unpickle(file, size - file.tell())

    (protocol, _), (system, _) = following(), following()
    if protocol != 1001 or not isinstance(system, dict):
        raise ValueError(f"{path} has an unknown form, {protocol=}: {_RESAVE}")
    if not system.get("little_endian", True):
        raise ValueError(f"{path} was saved on a big-endian machine: {_RESAVE} on an ordinary one")
    content, storages = following()
    keys, _ = following()
    if not isinstance(keys, list) or sorted(map(repr, keys)) != sorted(map(repr, storages)):
        raise ValueError(f"{path} is damaged: its storages are not those of its tensors; {_AGAIN}")

    begin, needed = {}, file.tell()
    for key in keys:
        begin[key] = needed + 8
        needed += 8 + storages[key].nbytes
    if needed > size:
        raise ValueError(f"{path} is half a download: {size} bytes of {needed}; {_AGAIN}")

    def load(storage: Storage) -> bytes:
        file.seek(begin[storage.key] - 8)
        (count,) = struct.unpack("<q", file.read(8))
        if count != storage.size:
            raise ValueError(f"{path} is damaged: storage {storage.key} has {count} elements, not {storage.size}")
        return file.read(storage.nbytes)

    return content, load


def _arrays(
    path: Path, kind: str, size: int, content: Any, load: Callable[[Storage], bytes], ema: bool
) -> tuple[dict[str, np.ndarray], FileInfo]:
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds {_kind_of(content)}, not a state dict")
    key, notes = _find(path, content, ema)
    tensors = content[key] if key else content
    others = [f"{name} ({_kind_of(value)})" for name, value in tensors.items() if not isinstance(value, Tensor)]
    if others:
        raise ValueError(
            f"{path} holds more than tensors{f' under {key!r}' if key else ''}: {', '.join(others[:8])}"
            f"{', ...' if len(others) > 8 else ''}; weights are looked for under {', '.join(_WEIGHTS)} or at the top"
        )
    if sum(tensor.nbytes for tensor in tensors.values()) > 4 * size:  # shared and half-size storages stay below
        raise ValueError(f"{path} unpacks to many times its {size} bytes: a bomb?")
    data: dict[str, bytes] = {}
    for tensor in tensors.values():
        if tensor.storage.key not in data:
            data[tensor.storage.key] = load(tensor.storage)
    arrays = {str(name): tensor.array(data[tensor.storage.key]) for name, tensor in tensors.items()}
    extra = (
        {}
        if not key
        else {str(k): v for k, v in content.items() if isinstance(v, (str, int, float)) or k in ("config", "args")}
    )
    return _unprefixed(path, arrays), FileInfo(kind, key, extra=extra, notes=notes)


def _find(path: Path, content: Mapping[Any, Any], ema: bool) -> tuple[str, tuple[str, ...]]:
    """The entry that holds the weights, "" for the top level, and what to say about it."""
    plain, averaged = ([k for k in keys if isinstance(content.get(k), dict)] for keys in (_WEIGHTS, _EMA))
    if ema and not averaged:
        entries = ", ".join(map(str, list(content)[:8]))
        raise ValueError(f"{path} holds no moving average ({' or '.join(_EMA)}), only {entries}: leave ema (--ema) out")
    if not ema and averaged and not plain:
        raise ValueError(f"{path} holds only a moving average, {averaged[0]!r}: ask for it with ema=True (--ema)")
    found = averaged if ema else plain
    notes = []
    if len(found) > 1:
        notes.append(f"the file holds {' and '.join(map(repr, found))}: took {found[0]!r}")
    if plain and averaged:
        took, left = (averaged[0], plain[0]) if ema else (plain[0], averaged[0])
        other = "without ema (--ema)" if ema else "ema=True (--ema)"
        notes.append(f"the file holds weights and their moving average: took {took!r}; {other} takes {left!r}")
    return (found[0] if found else ""), tuple(notes)


def _unprefixed(path: Path, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    named = {_PREFIXES.sub("", name): array for name, array in arrays.items()}
    if len(named) != len(arrays):
        raise ValueError(f"{path} holds the same names with and without the prefix 'module.' or '_orig_mod.'")
    return named


def _kind_of(value: Any) -> str:
    name = value.name if isinstance(value, Opaque) else type(value).__name__.lower().lstrip("_")
    return f"a {name}"
