"""What a pickle of `torch.save` may name, and what is made of it: one table.

Nothing here imports or calls what a pickle names. A class of which nothing is needed becomes an `Opaque`.
"""

import math
import re
from collections.abc import Callable
from typing import Any

import numpy as np

from flatten_jax.weights.pickle_values import (
    STORAGES,
    TYPES,
    Global,
    Namespace,
    NumpyArray,
    NumpyType,
    Opaque,
    RefusedError,
    Storage,
    Tensor,
    UnpickleError,
)

_SCALARS = (str, bytes, int, float, bool, type(None))


def allowed(argument: str) -> Global:
    """The name "module attribute" of an opcode, if it is on the list.

    Raises:
        RefusedError: it is not.
    """
    module, _, attribute = argument.partition(" ")
    module = {"__builtin__": "builtins"}.get(module, module).replace("numpy._core", "numpy.core")
    name = f"{module}.{attribute}"
    if name in _UNREADABLE:
        raise RefusedError(*_UNREADABLE[name])
    if name not in _BUILDERS and name not in _CONSTANTS and not stands_in(name):
        raise RefusedError(f"it asks for {name!r}, which is not among the types that weights are made of")
    return Global(name)


def stands_in(name: str) -> bool:
    """Whether an object of this class is replaced by an inert stand-in."""
    return name not in _BUILDERS and bool(_STAND_INS.fullmatch(name))


def build(function: Any, arguments: Any) -> Any:
    """What stands for function(*arguments)."""
    if not isinstance(function, Global) or not isinstance(arguments, tuple) or function.name in _CONSTANTS:
        raise UnpickleError(f"a call of {getattr(function, 'name', type(function).__name__)}")
    return _BUILDERS[function.name](*arguments) if function.name in _BUILDERS else Opaque(function.name)


def set_state(target: Any, state: Any) -> None:
    """What stands for target.__setstate__(state)."""
    if isinstance(target, Namespace) and isinstance(state, dict):
        target.update(state)
    elif isinstance(target, NumpyType) and isinstance(state, tuple) and len(state) > 1 and isinstance(state[1], str):
        target.order = state[1]
    elif isinstance(target, NumpyArray) and isinstance(state, tuple) and len(state) == 5:
        _, shape, kind, fortran, data = state
        target.filled(shape, kind, data, "F" if fortran else "C")


def as_key(key: Any) -> Any:
    """Keys are scalars, or flat tuples of them: hashing deeper ones overflows the C stack."""
    if isinstance(key, (*_SCALARS, Opaque, Global)):
        return key
    if isinstance(key, tuple) and all(isinstance(part, _SCALARS) for part in key):
        return key
    raise UnpickleError(f"a dict with a key of type {type(key).__name__}")


def _tensor(storage: Any, offset: Any, shape: Any, stride: Any, *_: Any, dtype: np.dtype | None = None) -> Tensor:
    if not isinstance(storage, Storage):
        raise UnpickleError("a tensor without a storage")
    shape, stride, dtype = tuple(shape), tuple(stride), dtype or storage.dtype
    plain = all(type(n) is int and 0 <= n < 1 << 40 for n in (offset, *shape, *stride))
    if not plain or not len(shape) == len(stride) <= 32 or math.prod(max(n, 1) for n in shape) >= 1 << 40:
        raise UnpickleError(f"a tensor of {shape=} with {stride=} and {offset=}")
    elements, size = math.prod(shape), storage.nbytes // dtype.itemsize
    last = offset + sum((n - 1) * step for n, step in zip(shape, stride, strict=True))
    if elements and last >= size:
        raise UnpickleError(f"a tensor of {shape=} with {stride=} and {offset=} leaves its storage of {size} elements")
    return Tensor(storage, dtype, offset if elements else 0, shape, stride)


def _typed_tensor(
    storage: Any, offset: Any, shape: Any, stride: Any, grad: Any, hooks: Any, dtype: Any, *_: Any
) -> Any:
    if not isinstance(dtype, Global) or dtype.name not in TYPES:
        raise UnpickleError("a tensor of an unknown type")
    return _tensor(storage, offset, shape, stride, dtype=TYPES[dtype.name])


def _subclass(function: Any, kind: Any, arguments: Any, *_: Any) -> Any:
    """A tensor with attributes, or of a class of its own, is a tensor."""
    if not isinstance(function, Global) or not function.name.startswith("torch._utils._rebuild_"):
        raise UnpickleError(f"a tensor made by {getattr(function, 'name', type(function).__name__)}")
    return build(function, arguments)


def _mapping(*items: Any) -> dict[Any, Any]:
    result: dict[Any, Any] = {}
    for pairs in items:
        for key, value in pairs.items() if isinstance(pairs, dict) else pairs:
            result[as_key(key)] = value
    return result


def _config(*items: Any) -> dict[Any, Any]:
    """A config that is made of dicts, or of its entries; what follows in the pickle fills it too."""
    pairs = [item for item in items if isinstance(item, tuple) and len(item) == 2]
    return _mapping(*(item for item in items if isinstance(item, dict)), pairs)


def _encode(text: Any, encoding: Any) -> bytes:
    if encoding != "latin1" or not isinstance(text, str):
        raise UnpickleError(f"_codecs.encode with {encoding!r}")
    return text.encode("latin1")  # how protocol 2 writes bytes


def _numpy_scalar(kind: Any, data: Any = None) -> Any:
    dtype = kind.dtype if isinstance(kind, NumpyType) else None
    if dtype is not None and isinstance(data, bytes) and len(data) == dtype.itemsize:
        return np.frombuffer(data, dtype)[0].item()
    return Opaque("numpy scalar")


def _from_buffer(data: Any, kind: Any, shape: Any, order: Any = "C", *_: Any) -> NumpyArray:
    return NumpyArray().filled(shape, kind, data, "F" if order == "F" else "C")


def _opaque(name: str) -> Callable[..., Opaque]:
    return lambda *args: Opaque(name)


# What a file may name, and what is made of it. Sets stay lists: nobody looks into them.
_BUILDERS: dict[str, Callable[..., Any]] = {
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _typed_tensor,
    "torch._utils._rebuild_parameter": lambda data, *_: data,
    "torch._utils._rebuild_parameter_with_state": lambda data, *_: data,
    "torch._utils._rebuild_device_tensor_from_numpy": lambda data, *_: data,  # of a TPU
    "torch._tensor._rebuild_from_type_v2": _subclass,
    "torch.nn.parameter.Parameter": lambda data=None, *_: data,
    "torch.Size": lambda sizes=(): sizes,
    "torch.device": lambda *args: args[0] if args else "cpu",
    "torch.serialization._get_layout": _opaque("layout"),
    "torch.torch_version.TorchVersion": lambda text="": text,
    "collections.OrderedDict": _mapping,
    "collections.Counter": _mapping,
    "collections.defaultdict": lambda *factory: {},
    "collections.deque": lambda items=(), *_: list(items),
    "yacs.config.CfgNode": _mapping,
    "addict.addict.Dict": _config,
    "easydict.EasyDict": _config,
    "mmcv.utils.config.ConfigDict": _config,
    "mmengine.config.config.ConfigDict": _config,
    "argparse.Namespace": Namespace,
    "types.SimpleNamespace": Namespace,
    "builtins.dict": _mapping,
    "builtins.list": lambda items=(): list(items),
    "builtins.tuple": lambda items=(): tuple(items),
    "builtins.set": lambda items=(): items,
    "builtins.frozenset": lambda items=(): items,
    **{f"builtins.{name}": _opaque(name) for name in ("slice", "complex", "range", "bytearray", "int", "long")},
    **{f"builtins.{name}": _opaque(name) for name in ("float", "bool", "str", "object")},
    "builtins.bytes": lambda *args: Opaque("bytes") if args else b"",  # how protocol 2 writes none
    **{f"pathlib.{path}": _opaque("path") for path in ("PosixPath", "WindowsPath", "PurePosixPath")},
    **{f"pathlib._local.{path}": _opaque("path") for path in ("PosixPath", "WindowsPath", "PurePosixPath")},
    "_codecs.encode": _encode,
    "numpy.dtype": lambda code="", *_: NumpyType(str(code)[:8]),
    "numpy.ndarray": lambda *_: NumpyArray(),
    "numpy.core.multiarray.scalar": _numpy_scalar,
    "numpy.core.multiarray._reconstruct": lambda *_: NumpyArray(),
    "numpy.core.numeric._frombuffer": _from_buffer,
}
_CONSTANTS = {*STORAGES, *TYPES}
# Classes of configs, times, schedules and optimizers that people save beside the weights: nobody looks into them.
_STAND_INS = re.compile(
    r"datetime\.(date|time|datetime|timedelta|timezone)|decimal\.Decimal|fractions\.Fraction|uuid\.UUID|typing\.Any"
    r"|numpy\.random\._pickle\.__(randomstate|generator|bit_generator)_ctor"
    r"|(torch\.optim|torch\.(cuda\.)?amp\.grad_scaler|timm\.(scheduler|optim)|omegaconf|addict|easydict|munch|box"
    r"|ml_collections|mmcv|mmengine|(pytorch_)?lightning|lightning_fabric|deepspeed|fvcore\.common\.config"
    r"|detectron2\.config|apex\.optimizers|transformers\.training_args)(\.\w+)*\.[A-Z]\w*"
)
_DENSE = "open it with PyTorch and save {k: v.%s() for k, v in state_dict.items()}"
_UNREADABLE = {
    "torch._utils._rebuild_sparse_tensor": ("a sparse tensor", _DENSE % "to_dense"),
    "torch._utils._rebuild_sparse_csr_tensor": ("a sparse tensor", _DENSE % "to_dense"),
    "torch._utils._rebuild_qtensor": ("a quantised tensor", _DENSE % "dequantize"),
    "torch._utils._rebuild_meta_tensor_no_storage": (
        "a tensor of the device 'meta', which has no numbers",
        "save it after the weights are loaded",
    ),
}
