"""The pickles of `torch.save`, interpreted by a small machine of our own: no import, no call, nothing is executed.

Python's Unpickler, and PyTorch's `weights_only` on top of it, call what the file names and have been talked into more
than was meant. Here a name is looked up in one table of inert builders, and what is not in the table is refused.
"""

import math
import pickletools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, BinaryIO

import ml_dtypes
import numpy as np

MAX_PICKLE_BYTES = 16 << 20  # the pickle of PVT-L with its optimizer takes 1 MiB: the weights are beside it
MAX_OBJECTS = 2_000_000

_STORAGES = {
    "torch.FloatStorage": np.dtype(np.float32),
    "torch.DoubleStorage": np.dtype(np.float64),
    "torch.HalfStorage": np.dtype(np.float16),
    "torch.BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    "torch.LongStorage": np.dtype(np.int64),
    "torch.IntStorage": np.dtype(np.int32),
    "torch.ShortStorage": np.dtype(np.int16),
    "torch.CharStorage": np.dtype(np.int8),
    "torch.ByteStorage": np.dtype(np.uint8),
    "torch.BoolStorage": np.dtype(np.bool_),
}
_SCALARS = (str, bytes, int, float, bool, type(None))


class UnpickleError(ValueError):
    """A pickle that is damaged, or that asks for what is not allowed."""


class RefusedError(UnpickleError):
    """The pickle names something that is not on the list."""


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
    """A view of a storage, checked to lie within it; offset and stride count elements."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.storage.dtype.itemsize

    def array(self, data: bytes) -> np.ndarray:
        """The numbers, out of the bytes of the storage; bfloat16 becomes float32."""
        dtype = self.storage.dtype
        flat = np.frombuffer(data, dtype)[self.offset :]
        strides = [step * dtype.itemsize for step in self.stride]
        view = np.lib.stride_tricks.as_strided(flat, self.shape, strides, writeable=False)
        return view.astype(np.float32) if dtype == ml_dtypes.bfloat16 else view


@dataclass(frozen=True)
class _Global:
    name: str


@dataclass(frozen=True, eq=False)
class Opaque:
    """Stands for an object whose content is of no use here."""

    name: str


class _Namespace(dict):
    """argparse.Namespace as a dict, filled by its state."""


def _tensor(storage: Any, offset: Any, shape: Any, stride: Any, *_: Any) -> Tensor:
    if not isinstance(storage, Storage):
        raise UnpickleError("a tensor without a storage")
    shape, stride = tuple(shape), tuple(stride)
    plain = all(type(n) is int and 0 <= n < 1 << 40 for n in (offset, *shape, *stride))
    if not plain or not len(shape) == len(stride) <= 32 or math.prod(max(n, 1) for n in shape) >= 1 << 40:
        raise UnpickleError(f"a tensor of {shape=} with {stride=} and {offset=}")
    elements = math.prod(shape)
    last = offset + sum((n - 1) * step for n, step in zip(shape, stride, strict=True))
    if elements and (last >= storage.size or elements > storage.size):
        raise UnpickleError(
            f"a tensor of {shape=} with {stride=} and {offset=} leaves its storage of {storage.size} elements"
        )
    return Tensor(storage, offset if elements else 0, shape, stride)


def _parameter(data: Any, *_: Any) -> Any:
    return data


def _mapping(*items: Any) -> dict[Any, Any]:
    result: dict[Any, Any] = {}
    for pairs in items:
        for key, value in pairs.items() if isinstance(pairs, dict) else pairs:
            result[_key(key)] = value
    return result


def _encode(text: Any, encoding: Any) -> bytes:
    if encoding != "latin1" or not isinstance(text, str):
        raise UnpickleError(f"_codecs.encode with {encoding!r}")
    return text.encode("latin1")  # how protocol 2 writes bytes


def _numpy_scalar(dtype: Any, data: Any = None) -> Any:
    code = dtype.name if isinstance(dtype, Opaque) else ""
    if code in ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "b1") and isinstance(data, bytes):
        return np.frombuffer(data, np.dtype(code), count=1)[0].item()
    return Opaque("numpy scalar")


def _opaque(name: str) -> Callable[..., Opaque]:
    return lambda *args: Opaque(name)


# What a file may name, and what is made of it. Sets stay lists: nobody looks into them.
_BUILDERS: dict[str, Callable[..., Any]] = {
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_parameter_with_state": _parameter,
    "torch.nn.parameter.Parameter": _parameter,
    "torch.Size": lambda sizes=(): sizes,
    "torch.device": lambda *args: args[0] if args else "cpu",
    "collections.OrderedDict": _mapping,
    "collections.Counter": _mapping,
    "collections.defaultdict": lambda *factory: {},
    "yacs.config.CfgNode": _mapping,
    "argparse.Namespace": lambda: _Namespace(),
    "builtins.dict": _mapping,
    "builtins.set": lambda items=(): items,
    "builtins.frozenset": lambda items=(): items,
    "builtins.slice": _opaque("slice"),
    "builtins.complex": _opaque("complex"),
    **{f"pathlib.{path}": _opaque("path") for path in ("PosixPath", "WindowsPath", "_local.PosixPath")},
    "_codecs.encode": _encode,
    "numpy.dtype": lambda code="", *_: Opaque(str(code)[:8]),
    "numpy.ndarray": _opaque("numpy array"),
    "numpy.core.multiarray.scalar": _numpy_scalar,
    "numpy.core.multiarray._reconstruct": _opaque("numpy array"),
}
_CONSTANTS = {*_STORAGES, *(f"torch.{dtype}" for dtype in _STORAGES.values())}


class _Bounded:
    """What pickletools reads from: never more bytes than allowed, and no allocation before that is known."""

    def __init__(self, file: BinaryIO, limit: int):
        self._file, self._left = file, limit

    def read(self, count: int) -> bytes:
        if count > self._left:
            raise UnpickleError("it ends in the middle, or is larger than a pickle of weights can be")
        self._left -= count
        return self._file.read(count)

    def readline(self) -> bytes:
        line = self._file.readline(self._left)
        self._left -= len(line)
        return line

    def tell(self) -> int:
        return 0


def unpickle(file: BinaryIO, limit: int = MAX_PICKLE_BYTES) -> tuple[Any, dict[str, Storage]]:
    """The next pickle of `file`, which is left behind its end, and the storages it refers to, by key.

    Tensors come as `Tensor`, CfgNode and Namespace as dicts, what is of no use here as `Opaque`.

    Args:
        limit: bytes that the pickle may take at most.

    Raises:
        RefusedError: it names something that is not on the list; the message says what.
        UnpickleError: it is damaged, or too large.
    """
    machine = _Machine()
    try:
        for opcode, argument, _ in pickletools.genops(_Bounded(file, min(limit, MAX_PICKLE_BYTES))):
            machine.spend(1)
            if opcode.name == "STOP":
                return machine.pop(), machine.storages
            machine.step(opcode.name, argument)
    except UnpickleError:
        raise
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, OverflowError) as error:
        raise UnpickleError(f"a damaged pickle ({error})") from error
    raise UnpickleError("a pickle without an end")


class _Machine:
    """The stack, the memo, and one step per opcode."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}
        self.storages: dict[str, Storage] = {}
        self.left = MAX_OBJECTS

    def spend(self, count: int) -> None:
        self.left -= count
        if self.left < 0:
            raise UnpickleError(f"it makes more than {MAX_OBJECTS} objects")

    def pop(self) -> Any:
        if len(self.stack) <= (self.marks[-1] if self.marks else 0):
            raise UnpickleError("a damaged pickle (the stack is empty)")
        return self.stack.pop()

    def pop_mark(self) -> list[Any]:
        if not self.marks:
            raise UnpickleError("a damaged pickle (no mark)")
        start = self.marks.pop()
        items = self.stack[start:]
        del self.stack[start:]
        return items

    def step(self, name: str, argument: Any) -> None:
        push = self.stack.append
        match name:
            case "PROTO" | "FRAME":
                pass
            case "MARK":
                self.marks.append(len(self.stack))
            case "NONE":
                push(None)
            case "NEWTRUE" | "NEWFALSE":
                push(name == "NEWTRUE")
            case "INT" | "BININT" | "BININT1" | "BININT2" | "LONG" | "LONG1" | "LONG4" | "FLOAT" | "BINFLOAT":
                push(argument)
            case "STRING" | "BINSTRING" | "SHORT_BINSTRING" | "UNICODE" | "BINUNICODE" | "SHORT_BINUNICODE":
                push(argument)
            case "BINUNICODE8" | "BINBYTES" | "SHORT_BINBYTES" | "BINBYTES8":
                push(argument)
            case "EMPTY_TUPLE":
                push(())
            case "EMPTY_LIST" | "EMPTY_SET":
                push([])
            case "EMPTY_DICT":
                push({})
            case "TUPLE":
                push(tuple(self.pop_mark()))
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                push(tuple(reversed([self.pop() for _ in range(int(name[-1]))])))
            case "LIST" | "FROZENSET":
                push(self.pop_mark())
            case "DICT":
                push(_pairs(self.pop_mark()))
            case "APPEND":
                self.extend([self.pop()])
            case "APPENDS" | "ADDITEMS":
                self.extend(self.pop_mark())
            case "SETITEM":
                value, key = self.pop(), self.pop()
                self.update([key, value])
            case "SETITEMS":
                self.update(self.pop_mark())
            case "PUT" | "BINPUT" | "LONG_BINPUT":
                self.memo[argument] = self.stack[-1]
            case "MEMOIZE":
                self.memo[len(self.memo)] = self.stack[-1]
            case "GET" | "BINGET" | "LONG_BINGET":
                push(self.memo[argument])
            case "GLOBAL":
                push(_allowed(argument))
            case "STACK_GLOBAL":
                attribute, module = self.pop(), self.pop()
                push(_allowed(f"{module} {attribute}"))
            case "INST":
                _allowed(argument)  # the refusal names it; torch.save writes no INST for what is allowed
                raise UnpickleError("an opcode INST, which torch.save does not write")
            case "REDUCE" | "NEWOBJ":
                arguments, function = self.pop(), self.pop()
                push(self.build(function, arguments))
            case "BUILD":
                state, target = self.pop(), self.stack[-1]
                if isinstance(target, _Namespace) and isinstance(state, dict):
                    self.spend(len(state))
                    target.update(state)
            case "BINPERSID":
                push(self.storage(self.pop()))
            case _:
                raise UnpickleError(f"an opcode {name}, which torch.save does not write")

    def extend(self, items: list[Any]) -> None:
        if not isinstance(self.stack[-1], list):
            raise UnpickleError("a damaged pickle (append to what is no list)")
        self.stack[-1].extend(items)

    def update(self, items: list[Any]) -> None:
        if not isinstance(self.stack[-1], dict):
            raise UnpickleError("a damaged pickle (an entry set in what is no dict)")
        self.stack[-1].update(_pairs(items))

    def build(self, function: Any, arguments: Any) -> Any:
        if not isinstance(function, _Global) or function.name not in _BUILDERS or not isinstance(arguments, tuple):
            raise UnpickleError(f"a call of {getattr(function, 'name', type(function).__name__)}")
        # A builder may copy its arguments, so a pickle that makes many copies of one list pays for each.
        self.spend(sum(len(a) for a in arguments if isinstance(a, (str, bytes, list, tuple, dict))))
        return _BUILDERS[function.name](*arguments)

    def storage(self, reference: Any) -> Storage:
        kind, storage_type, key, _, size, *view = reference
        if kind != "storage" or not isinstance(storage_type, _Global) or storage_type.name not in _STORAGES:
            raise UnpickleError("a reference to something that is no storage of plain numbers")
        if type(size) is not int or size < 0 or not isinstance(key, str) or any(v is not None for v in view):
            raise UnpickleError(f"a storage {key!r} of size {size!r}")
        storage = Storage(key, _STORAGES[storage_type.name], size)
        if self.storages.setdefault(key, storage) != storage:
            raise UnpickleError(f"a storage {key!r} of two types or sizes")
        return storage


def _allowed(argument: str) -> _Global:
    module, _, attribute = argument.partition(" ")
    module = {"__builtin__": "builtins"}.get(module, module).replace("numpy._core", "numpy.core")
    name = f"{module}.{attribute}"
    if name not in _BUILDERS and name not in _CONSTANTS:
        raise RefusedError(f"it asks for {name!r}, which is not among the types that weights are made of")
    return _Global(name)


def _pairs(items: list[Any]) -> dict[Any, Any]:
    return {_key(key): value for key, value in zip(items[::2], items[1::2], strict=True)}


def _key(key: Any) -> Any:
    """Keys are scalars, or flat tuples of them: hashing deeper ones overflows the C stack."""
    if isinstance(key, (*_SCALARS, Opaque, _Global)):
        return key
    if isinstance(key, tuple) and all(isinstance(part, _SCALARS) for part in key):
        return key
    raise UnpickleError(f"a dict with a key of type {type(key).__name__}")
