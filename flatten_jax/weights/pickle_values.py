"""What the pickles of `torch.save` are made of: references to numbers, arrays, and inert stand-ins for all else."""

import math
import re
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np

_NAMES = ("float32", "float64", "float16", "int64", "int32", "int16", "int8", "uint8", "uint16", "uint32", "uint64")
_SMALL = ("bfloat16", "float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz", "float8_e8m0fnu")
# PyTorch's element types, by the names that pickles have for them.
TYPES = {
    **{f"torch.{name}": np.dtype(name) for name in (*_NAMES, "bool", "complex64", "complex128")},
    **{f"torch.{name}": np.dtype(getattr(ml_dtypes, name)) for name in _SMALL},
}
STORAGES = {
    f"torch.{kind}Storage": TYPES[f"torch.{name}"]
    for kind, name in {
        "Float": "float32",
        "Double": "float64",
        "Half": "float16",
        "BFloat16": "bfloat16",
        "Long": "int64",
        "Int": "int32",
        "Short": "int16",
        "Char": "int8",
        "Byte": "uint8",
        "Bool": "bool",
        "ComplexFloat": "complex64",
        "ComplexDouble": "complex128",
    }.items()
} | {name: np.dtype(np.uint8) for name in ("torch.UntypedStorage", "torch.storage.UntypedStorage")}


class UnpickleError(ValueError):
    """A pickle that is damaged, or that asks for what is not allowed."""


class RefusedError(UnpickleError):
    """The pickle names something that is not on the list; `advice` where more can be said than how to save it again."""

    def __init__(self, message: str, advice: str = ""):
        super().__init__(message)
        self.advice = advice


@dataclass(frozen=True)
class Storage:
    """A reference to numbers that lie outside the pickle."""

    key: str
    dtype: np.dtype
    size: int  # in elements

    @property
    def nbytes(self) -> int:
        return self.size * self.dtype.itemsize


@dataclass(frozen=True, eq=False)
class Tensor:
    """A view of a storage, checked to lie within it; offset and stride count elements, a stride of 0 repeats one."""

    storage: Storage
    dtype: np.dtype
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    def array(self, data: bytes) -> np.ndarray:
        """The numbers, out of the bytes of the storage; what NumPy itself has no type for becomes float32."""
        flat = np.frombuffer(data, self.dtype, count=len(data) // self.dtype.itemsize)[self.offset :]
        strides = [step * self.dtype.itemsize for step in self.stride]
        return widened(np.lib.stride_tricks.as_strided(flat, self.shape, strides, writeable=False))


@dataclass(eq=False)
class NumpyType:
    """numpy.dtype: a code such as "f4", and the order of its bytes."""

    code: str
    order: str = "="

    @property
    def dtype(self) -> np.dtype | None:
        """None for what does not consist of plain numbers."""
        plain = re.fullmatch(r"[<>=|]?(f[248]|[iu][1248]|b1)", self.code) and self.order in "<>=|"
        return np.dtype(self.code).newbyteorder(self.order) if plain else None


@dataclass(eq=False)
class NumpyArray:
    """numpy.ndarray: its bytes are in the pickle."""

    shape: tuple[int, ...] = ()
    dtype: np.dtype | None = None
    data: bytes = b""
    order: str = "C"

    @property
    def nbytes(self) -> int:
        return len(self.data)

    def filled(self, shape: Any, kind: Any, data: Any, order: str) -> "NumpyArray":
        dtype = kind.dtype if isinstance(kind, NumpyType) else None
        data = data.encode("latin1") if isinstance(data, str) else data
        if dtype is None or not isinstance(data, (bytes, bytearray)):
            return self  # objects or text, which no weights are
        plain = isinstance(shape, tuple) and len(shape) <= 32 and all(type(n) is int and n >= 0 for n in shape)
        if not plain or math.prod(shape) * dtype.itemsize != len(data):
            raise UnpickleError(f"a NumPy array of {shape=} in {len(data)} bytes")
        self.shape, self.dtype, self.data, self.order = shape, dtype, bytes(data), order
        return self

    def array(self) -> np.ndarray:
        """The numbers, in this machine's order of bytes."""
        array = np.frombuffer(self.data, self.dtype).reshape(self.shape, order=self.order)
        return array.astype(self.dtype.newbyteorder("="), copy=False)


@dataclass(frozen=True)
class Global:
    """A name of the table."""

    name: str


@dataclass(frozen=True, eq=False)
class Opaque:
    """Stands for an object whose content is of no use here."""

    name: str


class Namespace(dict):
    """argparse.Namespace as a dict, filled by its state."""


def widened(array: np.ndarray) -> np.ndarray:
    """bfloat16 and the types of eight bits as float32, which has all their values; others as they are."""
    return array.astype(np.float32) if array.dtype.type.__module__ == "ml_dtypes" else array
