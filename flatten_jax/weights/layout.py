"""The one table of a model's variables: what each is called here and in PyTorch, how it lies, what grid it belongs to.

Modules carry the originals' names, so most names differ only in how lists and leaves are written:
`blocks.0.attn.qkv.weight` is `blocks_0/attn/qkv/kernel`. What an attention calls otherwise it declares (`original`).
"""

import inspect
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np
from flax.traverse_util import flatten_dict

from flatten_jax.attention import Attention, Site, Sized, takes_bias
from flatten_jax.hosts import WindowAttention
from flatten_jax.hosts.drop_in import AttentionLayer, FocusedLinearAttention
from flatten_jax.hosts.grids import Windows, relative_position_index
from flatten_jax.models import dummy_images

Path = tuple[str, ...]
Shape = tuple[int, ...]

# (Flax leaf, its number of dimensions) -> (PyTorch leaf, axes that take PyTorch's layout to Flax's).
_LEAVES = {
    ("kernel", 2): ("weight", (1, 0)),  # linear: [out, in]
    ("kernel", 3): ("weight", (2, 1, 0)),  # convolution of one dimension: [out, in, length]
    ("kernel", 4): ("weight", (2, 3, 1, 0)),  # convolution: [out, in, height, width]
    ("scale", 1): ("weight", (0,)),  # of a norm; the focused attention's own `scale` has three dimensions
    ("mean", 1): ("running_mean", (0,)),
    ("var", 1): ("running_var", (0,)),
}
# What PyTorch keeps beside the weights and anyone can compute: nobody needs to load it.
_BUFFERS = ("relative_position_index", "attn_mask", "num_batches_tracked", "angle", "rotations")


class Row(NamedTuple):
    """A variable of a model.

    Attributes:
        collection, path, shape: where it is in the variables.
        name: of the PyTorch entry, or with `parts` of the module that holds it.
        axes: take PyTorch's layout to ours.
        parts: (name, width) of the entries of which this is made, side by side along its last axis: an original that
            has a layer for each of q, k and v. Mostly empty: one entry.
        letters: (letter, width) of the streams that a projection makes, else empty.
        pointwise: PyTorch's entry is a 1 x 1 convolution.
        sized: how it belongs to a number of tokens.
        site: where its attention stands.
    """

    collection: str
    path: Path
    shape: Shape
    name: str
    axes: tuple[int, ...]
    parts: tuple[tuple[str, int], ...] = ()
    letters: tuple[tuple[str, int], ...] = ()
    pointwise: bool = False
    sized: Sized | None = None
    site: Site | None = None

    @property
    def ours(self) -> str:
        """Its name in our own files."""
        return "/".join(self.path if self.collection == "params" else (self.collection, *self.path))

    def entries(self) -> dict[str, Shape]:
        """PyTorch's entries that it is made of, with their shapes."""
        widths = self.parts or ((self.name, self.shape[-1] if self.shape else 0),)
        return {name: self._torch_shape((*self.shape[:-1], width)) for name, width in widths}

    def _torch_shape(self, shape: Shape) -> Shape:
        if not self.shape:
            return ()
        shape = tuple(shape[self.axes.index(i)] for i in range(len(self.axes)))
        return (*shape, 1, 1) if self.pointwise else shape

    def to_torch(self, array: np.ndarray) -> dict[str, np.ndarray]:
        """Its PyTorch entries."""
        pieces = np.split(array, np.cumsum([width for _, width in self.parts])[:-1], axis=-1) if self.parts else [array]
        return {
            name: np.ascontiguousarray(piece.transpose(np.argsort(self.axes)).reshape(shape))
            for piece, (name, shape) in zip(pieces, self.entries().items(), strict=True)
        }

    def from_torch(self, arrays: Mapping[str, np.ndarray]) -> np.ndarray:
        """Of entries of the shapes that `entries` says."""
        pieces = [
            np.asarray(arrays[name]).reshape(shape[: len(self.axes)]).transpose(self.axes)
            for name, shape in self.entries().items()
        ]
        return np.ascontiguousarray(np.concatenate(pieces, axis=-1) if len(pieces) > 1 else pieces[0])


def layout(model: nn.Module, example: Any = None, **call: Any) -> list[Row]:
    """A row for every variable of a model, from one trace; nothing is computed.

    Args:
        model: from `create_model`; or an attention layer, then with an example of its input.
        example: (B, N, C) tokens, or a map, of an attention layer.
        call: how the layer is called: grid, prefix.
    """
    seen: dict[Path, _Seen] = {}

    def visit(module: nn.Module, arguments: Mapping[str, Any]) -> None:
        if isinstance(module, Attention) and "site" in arguments:
            seen[module.scope.path] = _Seen(module, arguments["site"], arguments["x"].shape[-1])

    variables = visit_calls(model, visit, example, **call)
    return [
        _row(collection, path, tuple(leaf.shape), seen)
        for collection, tree in variables.items()
        for path, leaf in flatten_dict(tree).items()
    ]


class _Seen(NamedTuple):
    """An attention of a model, as it is called in a forward pass."""

    attention: Attention
    site: Site
    channels: int


def _row(collection: str, path: Path, shape: Shape, seen: Mapping[Path, _Seen]) -> Row:
    leaf, axes = _LEAVES.get((path[-1], len(shape)), (path[-1], tuple(range(len(shape)))))
    modules, place = list(path[:-1]), next((path[:n] for n in range(len(path) - 1, -1, -1) if path[:n] in seen), None)
    # CSwin's projections of streams are the block's, beside its attentions attns_0, attns_1.
    beside = place if place is not None else (*path[:-2], "attns_0")
    if beside not in seen or len(path) < 1:
        return Row(collection, path, shape, _join(modules, leaf), axes)

    attention, site, channels = seen[beside]
    first = len(place) if place is not None else len(path) - 2
    module, original = (path[first] if len(path) > first + 1 else ""), attention.original
    letters, parts = (), ()
    if module and len(path) == first + 2 and set(module) <= set(attention.streams):
        widths = attention.widths(channels)
        share = shape[-1] / sum(widths[letter] for letter in module)  # CSwin's branches have a part of the channels
        letters = tuple((letter, round(widths[letter] * share)) for letter in module)
        if any(letter in original for letter in module):
            parts = tuple((_join([*modules[:first], original.get(c, c)], leaf), width) for c, width in letters)
    elif module:
        modules[first] = original.get(module, module)
    else:
        leaf = original.get(path[-1], leaf)
    return Row(
        collection=collection,
        path=path,
        shape=shape,
        name=_join(modules, leaf),
        axes=axes,
        parts=parts,
        letters=letters,
        pointwise=path[-1] == "kernel" and len(shape) == 2 and module in attention.pointwise,
        sized=attention.sized.get(path[-1]) if place is not None else None,
        site=site if place is not None else None,
    )


def _join(modules: Iterable[str], leaf: str) -> str:
    return ".".join(
        [*(re.sub(r"_(\d+)(?=_|$)", r".\1", module).replace("._", ".").replace("_.", "_") for module in modules), leaf]
    )


def is_buffer(name: str) -> bool:
    """Whether PyTorch's name is that of something computed, which no one needs to load."""
    return name.rpartition(".")[2] in _BUFFERS


def entries(rows: list[Row]) -> dict[str, Shape]:
    """PyTorch's entries of a model: name -> shape."""
    return {name: shape for row in rows for name, shape in row.entries().items()}


def regrouped(rows: list[Row], arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """State dict entries with the projections of streams grouped as the model has them.

    The same streams may come as `qkv`, as `q` and `kv`, or one by one, and a layer within a token as a 1 x 1
    convolution or as a matrix: the hosts and originals differ in this, and nothing of the weights.
    """
    arrays = dict(arrays)
    for row in rows:
        wanted = row.entries()
        missing = [name for name in wanted if name not in arrays]
        if missing and row.letters:
            found = _streams(row, arrays)
            if found is not None:
                used, whole = found
                for name in used:
                    arrays.pop(name, None)
                arrays |= row.to_torch(whole)
        for name, shape in wanted.items():
            array = arrays.get(name)
            if array is not None and array.shape != shape and _squeezed(array.shape) == _squeezed(shape):
                arrays[name] = array.reshape(shape)
    return arrays


def _squeezed(shape: Shape) -> Shape:
    while len(shape) > 2 and shape[-1] == 1:
        shape = shape[:-1]
    return shape


def _streams(row: Row, arrays: Mapping[str, np.ndarray]) -> tuple[set[str], np.ndarray] | None:
    """(names used, the projection as we have it) from projections that group its streams otherwise."""
    name = row.parts[0][0] if row.parts else row.name
    before, _, leaf = name.rpartition(".")
    before = before.rpartition(".")[0]
    prefix = f"{before}." if before else ""
    widths, used, pieces = dict(row.letters), set(), []
    groups = [g[len(prefix) : -len(leaf) - 1] for g in arrays if g.startswith(prefix) and g.endswith(f".{leaf}")]
    for letter, width in row.letters:
        group = next((g for g in groups if letter in g and len(set(g)) == len(g) and set(g) <= set("qkvgou")), None)
        if group is None:
            return None
        start = sum(widths.get(c, width) for c in group[: group.index(letter)])
        array = np.asarray(arrays[f"{prefix}{group}.{leaf}"])
        pieces.append(array.reshape(_squeezed(array.shape))[start : start + width])
        used.add(f"{prefix}{group}.{leaf}")
    whole = np.concatenate(pieces).transpose(row.axes) if all(len(p) for p in pieces) else None
    return None if whole is None or whole.shape != row.shape else (used, whole)


def window_buffers(model: nn.Module) -> dict[str, np.ndarray]:
    """Swin's buffers as the release computes them, which PyTorch's strict loading asks for."""
    buffers = {}

    def visit(module: nn.Module, arguments: Mapping[str, Any]) -> None:
        if not isinstance(module, WindowAttention):
            return
        *block, attention = module.scope.path
        windows = Windows.of(arguments["site"].grid, module.window_size, module.shifted)
        if takes_bias(module.attn_type):
            index = relative_position_index(windows.window).astype(np.int64)
            buffers[_join([*block, attention], "relative_position_index")] = index
        if any(windows.shift):  # of linear blocks too, which do not look at it
            buffers[_join(block, "attn_mask")] = windows.mask()

    visit_calls(model, visit)
    return buffers


def visit_calls(
    model: nn.Module, visit: Callable[[nn.Module, Mapping[str, Any]], None], example: Any = None, **call: Any
) -> dict[str, Any]:
    """Call `visit(module, arguments)` for every call of a module inside `model`; nothing is computed.

    Returns:
        the abstract variables. What a call of an attention layer takes is told by `example` and `call`, see `layout`.
    """

    def intercept(function: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], context: Any) -> Any:
        if context.method_name == "__call__":
            visit(context.module, inspect.signature(function).bind(*args, **kwargs).arguments)
        return function(*args, **kwargs)

    with nn.intercept_methods(intercept):
        return jax.eval_shape(lambda: _init(model, example, **call))


def _init(model: nn.Module, example: Any, grid: Any = None, prefix: int = 0) -> Any:
    if example is None:
        return model.init(jax.random.key(0), dummy_images(model))
    if isinstance(model, FocusedLinearAttention):
        return model.init(jax.random.key(0), example, grid=grid)
    if isinstance(model, AttentionLayer):
        return model.init(jax.random.key(0), example, grid=grid, prefix=prefix)
    if grid is None:
        raise ValueError(f"{type(model).__name__} needs grid=(height, width) beside an example of its input")
    return model.init(jax.random.key(0), example, Site(tuple(grid), prefix=prefix))
