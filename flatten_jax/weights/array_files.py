"""Files of arrays and nothing else: `.safetensors` and `.npz`."""

import json
import struct
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import safetensors

from flatten_jax.weights.pickle_values import widened

FORMAT = "flatten_jax"  # `format` in the metadata of our own safetensors; PyTorch's says "pt"
AGAIN = "download it again"
# Element types of safetensors that NumPy has no name for.
_SAFETENSORS = {
    "BF16": ml_dtypes.bfloat16,
    "F8_E4M3": ml_dtypes.float8_e4m3fn,
    "F8_E5M2": ml_dtypes.float8_e5m2,
    "F8_E8M0": ml_dtypes.float8_e8m0fnu,
}


def read_safetensors(path: Path, start: bytes, size: int) -> tuple[dict[str, np.ndarray], Mapping[str, str]]:
    length = struct.unpack("<Q", start[:8])[0] if size >= 8 else size
    if 8 + length > size:
        looks = start[:16] if start[8:9] != b"{" else f"half a safetensors file: its header alone has {length} bytes"
        raise ValueError(f"{path} has {size} bytes and is no whole safetensors file: it begins with {looks}; {AGAIN}")
    try:
        with safetensors.safe_open(path, "numpy") as file:  # which checks the header against the file
            header = _safetensors_header(path, length)
            arrays = {
                name: _small_floats(path, 8 + length, header[name])
                if header[name]["dtype"] in _SAFETENSORS
                else file.get_tensor(name)
                for name in file.keys()  # noqa: SIM118 - not a dict
            }
            return arrays, file.metadata() or {}
    except safetensors.SafetensorError as error:
        raise ValueError(f"{path} is damaged{_safetensors_size(path, length, size)} ({error}); {AGAIN}") from error


def _safetensors_header(path: Path, length: int) -> dict[str, Any]:
    with open(path, "rb") as file:
        return json.loads(file.read(8 + length)[8:])


def _small_floats(path: Path, start: int, entry: Mapping[str, Any]) -> np.ndarray:
    begin, end = entry["data_offsets"]
    dtype = np.dtype(_SAFETENSORS[entry["dtype"]])
    flat = np.fromfile(path, dtype, (end - begin) // dtype.itemsize, offset=start + begin)
    return widened(flat.reshape(entry["shape"]))


def _safetensors_size(path: Path, length: int, size: int) -> str:
    try:
        header = _safetensors_header(path, length)
        expected = 8 + length + max(v["data_offsets"][1] for k, v in header.items() if k != "__metadata__")
    except (ValueError, TypeError, KeyError, IndexError, AttributeError):
        return ""
    return f": {size} bytes instead of the {expected} its header names" if expected != size else ""


def read_npz(path: Path, size: int) -> tuple[dict[str, np.ndarray], Mapping[str, str]]:
    """The arrays of np.savez, under PyTorch's names, or under ours: "blocks_0/attn/qkv/kernel"."""
    try:
        with zipfile.ZipFile(path) as file:
            unpacked = sum(entry.file_size for entry in file.infolist())
        check_size(path, unpacked, size)
        with np.load(path) as file:
            arrays = {name: file[name] for name in file.files}
    except (zipfile.BadZipFile, zlib.error, EOFError, struct.error) as error:
        raise ValueError(f"{path} is damaged ({error}); {AGAIN}") from error
    except ValueError as error:
        raise ValueError(f"{path} holds more than arrays of numbers: {error}") from error
    if any("/" in name for name in arrays):
        return {name.removeprefix("params/"): array for name, array in arrays.items()}, {"format": FORMAT}
    return arrays, {}


def check_size(path: Path, needed: int, size: int) -> None:
    if needed > max(4 * size, 1 << 20):  # storages that tensors share, and half-size ones, stay below
        raise ValueError(f"{path} unpacks to many times its {size} bytes: a bomb?")
