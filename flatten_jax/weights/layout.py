"""The one table of a model's variables: what each is called here and in PyTorch, how it lies, what grid it belongs to.

Modules carry the originals' names, so most names differ only in how lists and leaves are written:
`blocks.0.attn.qkv.weight` is `blocks_0/attn/qkv/kernel`. What an attention calls otherwise it declares (`original`).
"""

import functools
import inspect
import re
from collections.abc import Callable, Container, Iterable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np
from flax.traverse_util import flatten_dict

from flatten_jax.attention import ATTENTIONS, Attention, Site, Sized, takes_bias
from flatten_jax.hosts import WindowAttention
from flatten_jax.hosts.drop_in import AttentionLayer, FocusedLinearAttention
from flatten_jax.hosts.grids import Windows, relative_position_index
from flatten_jax.models import Backbone, dummy_images
from flatten_jax.models.registry import MODELS
from flatten_jax.models.stack import of_all, one_of_each
from flatten_jax.ops.derivative import forward_mode
from flatten_jax.ops.platform import plain_forms
from flatten_jax.segmentation.model import Segmenter

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
# What PyTorch keeps beside the weights and anyone can compute. Families and attentions declare further ones.
_BUFFERS = {
    "relative_position_index",
    "relative_coords_table",
    "attn_mask",
    "num_batches_tracked",
    "angle",
    "rotations",
}
# What averaging and profiling put among the weights.
_BUFFERS |= {"n_averaged", "total_ops", "total_params"}


class Row(NamedTuple):
    """A variable of a model.

    Attributes:
        collection, path, shape: where it is in the variables.
        name: of the PyTorch entry, where it is one.
        axes: take PyTorch's layout to ours.
        parts: (name, width) of the entries of which this is made, side by side along its last axis: an original that
            has a layer for each of q, k and v. Empty: one entry, `name`.
        letters: (letter, width) of the streams that a projection makes, else empty.
        pointwise: PyTorch's entry is a 1 x 1 convolution.
        sized: how it belongs to a number of tokens.
        site: where its attention stands, for what lies in the scope of one; in CSwin the projections do not.
        own: whether the attention makes it, and not its host.
        block: path of the block that it is in, () outside of blocks.
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
    own: bool = False
    block: Path = ()

    @property
    def ours(self) -> str:
        """Its name in our own files."""
        return "/".join(self.path if self.collection == "params" else (self.collection, *self.path))

    def renamed(self, original: Callable[[str], str]) -> "Row":
        """This row with PyTorch's names as `original` has them."""
        return self._replace(name=original(self.name), parts=tuple((original(n), width) for n, width in self.parts))

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
        """Its PyTorch entries, of an array of its shape."""
        pieces = np.split(array, np.cumsum([width for _, width in self.parts])[:-1], axis=-1) if self.parts else [array]
        return {
            name: np.ascontiguousarray(piece.transpose(np.argsort(self.axes)).reshape(shape))
            for piece, (name, shape) in zip(pieces, self.entries().items(), strict=True)
        }

    def from_torch(self, arrays: Mapping[str, np.ndarray]) -> np.ndarray:
        """The variable, of PyTorch's entries: of the shapes that `entries` says, or of another image size."""
        pieces = [self.as_ours(arrays[name]) for name in self.entries()]
        return np.ascontiguousarray(np.concatenate(pieces, axis=-1) if len(pieces) > 1 else pieces[0])

    def as_ours(self, entry: np.ndarray) -> np.ndarray:
        """One of PyTorch's entries in our layout."""
        entry = np.asarray(entry)
        return entry.reshape(entry.shape[: len(self.axes)]).transpose(self.axes)


def layout(model: nn.Module, example: Any = None, **call: Any) -> list[Row]:
    """A row for every variable of a model, from one trace; nothing is computed.

    Args:
        model: from `create_model`; or an attention layer, or a host, then with an example of its input.
        example: (B, N, C) tokens, or a map, of an attention layer.
        call: how the layer is called: grid, prefix.
    """
    seen: dict[Path, _Seen] = {}

    def visit(module: nn.Module, arguments: Mapping[str, Any]) -> Callable[[], None] | None:
        if not isinstance(module, Attention) or "site" not in arguments:
            return None
        site = arguments["site"].replace(bias=None, before=None)
        here = seen.setdefault(module.scope.path, _Seen(module, site, arguments["x"].shape[-1], set()))
        before = _paths(module.variables)
        return lambda: here.own.update(_paths(module.variables) - before)

    with one_of_each() as twins:
        variables = of_all(visit_calls(model, visit, example, **call), twins)
    for block, like in twins.items():
        seen |= {(*block, *place[len(like) :]): of for place, of in seen.items() if place[: len(like)] == like}
    blocks = {block_of(path) for path in seen}
    rows = [
        _row(collection, path, tuple(leaf.shape), seen)._replace(
            block=next((path[:n] for n in range(len(path)) if path[:n] in blocks), ())
        )
        for collection, tree in variables.items()
        for path, leaf in flatten_dict(tree).items()
    ]
    return [row.renamed(model.original) for row in rows] if isinstance(model, Backbone | Segmenter) else rows


def attention_of_blocks(model: nn.Module) -> dict[Path, str]:
    """The attention of each block, by the block's path, in the order in which they are called; nothing is computed."""
    found: dict[Path, str] = {}

    def visit(module: nn.Module, arguments: Mapping[str, Any]) -> None:
        if isinstance(module, Attention) and "site" in arguments:
            name = next((name for name, cls in ATTENTIONS.items() if cls is type(module)), type(module).__name__)
            found.setdefault(block_of(module.scope.path), name)

    visit_calls(model, visit)
    return found


class _Seen(NamedTuple):
    """An attention of a model, as it is called in a forward pass; `own`: the variables that it makes itself."""

    attention: Attention
    site: Site
    channels: int
    own: set[tuple[str, ...]]


def _paths(variables: Mapping[str, Any]) -> set[tuple[str, ...]]:
    return {(name, *path) for name, tree in variables.items() for path in flatten_dict(tree)}


def block_of(attention: Path) -> Path:
    """Where the block of an attention is: the innermost numbered module, but for the branches of CSwin's blocks."""
    numbered = [n for n, module in enumerate(attention) if re.fullmatch(r".*(?<!^attns)_\d+", module)]
    return attention[: numbered[-1] + 1] if numbered else ()


def _row(collection: str, path: Path, shape: Shape, seen: Mapping[Path, _Seen]) -> Row:
    leaf, axes = _LEAVES.get((path[-1], len(shape)), (path[-1], tuple(range(len(shape)))))
    place = next((path[:n] for n in range(len(path) - 1, -1, -1) if path[:n] in seen), None)
    # CSwin's projections of streams are the block's, beside its attentions attns_0, attns_1.
    beside = (*path[:-2], "attns_0") if place is None else place
    if beside not in seen:
        return Row(collection, path, shape, _join(path[:-1], leaf), axes)

    attention, site, channels, own = seen[beside]
    first = len(path) - 2 if place is None else len(place)
    before, modules = path[:first], list(path[first:-1])
    if not modules:  # the attention's own parameter, whatever its name
        leaf, axes = attention.original.get(path[-1], path[-1]), tuple(range(len(shape)))
    letters, parts = (), ()
    if len(modules) == 1 and set(modules[0]) <= set(attention.streams):
        widths = attention.widths(channels)
        share = shape[-1] / sum(widths[letter] for letter in modules[0])  # CSwin's branches have a part of the channels
        letters = tuple((letter, round(widths[letter] * share)) for letter in modules[0])
        named = _named(modules[0], attention.original)
        if len(named) > 1:
            parts = tuple((_join([*before, name], leaf), sum(dict(letters)[c] for c in part)) for part, name in named)
    pointwise = path[-1] == "kernel" and len(shape) == 2 and modules != [] and modules[0] in attention.pointwise
    if modules:
        modules[0] = attention.original.get(modules[0], modules[0])
    relative, sized = path[first:], attention.belongs()
    return Row(
        collection=collection,
        path=path,
        shape=shape,
        name=_join([*before, *modules], leaf),
        axes=axes,
        parts=parts,
        letters=letters,
        pointwise=pointwise,
        sized=sized.get("/".join(relative), sized.get(path[-1])) if place is not None else None,
        site=site if place is not None else None,
        own=place is not None and (collection, *relative) in own,
    )


def _named(letters: str, original: Mapping[str, str]) -> list[tuple[str, str]]:
    """The pieces of a projection that have names of their own in the original: (letters, name)."""
    if letters in original or not any(part in letters for part in original):
        return [(letters, original.get(letters, letters))]
    pieces = []
    while letters:
        ends = [n for n in range(len(letters), 0, -1) if letters[:n] in original] or [1]
        pieces.append((letters[: ends[0]], original.get(letters[: ends[0]], letters[: ends[0]])))
        letters = letters[ends[0] :]
    return pieces


def torch_modules(path: Iterable[str]) -> str:
    """PyTorch's name of a module, with the point that follows: "blocks.0.attn."; "" for none."""
    return _join(path, "")


def _join(modules: Iterable[str], leaf: str) -> str:
    """Items of lists, `a_0`, have a point in PyTorch; where an original's own name is `a_0`, ours is `a__0`."""
    return ".".join([*(re.sub(r"(?<!_)_(\d+)(?=_|$)", r".\1", m).replace("__", "_") for m in modules), leaf])


def is_buffer(name: str, wanted: Container[str] = ()) -> bool:
    """Whether PyTorch's name is that of something computed or held twice, which no one needs; none of `wanted` is."""
    if name in wanted:
        return False
    return _buffers(tuple(ATTENTIONS.values())).search(name) is not None


@functools.cache
def _buffers(attentions: tuple[type[Attention], ...]) -> re.Pattern[str]:
    families = {entry.family for entry in MODELS.values()}
    declared = {ending for cls in (*families, *attentions) for ending in cls.computed}
    return re.compile(rf"(^|\.)({'|'.join(sorted(_BUFFERS | declared))})$")


def entries(rows: Iterable[Row]) -> dict[str, Shape]:
    """PyTorch's entries of a model: name -> shape."""
    return {name: shape for row in rows for name, shape in row.entries().items()}


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


def visit_calls(model: nn.Module, visit: Callable[..., Any], example: Any = None, **call: Any) -> dict[str, Any]:
    """Call `visit(module, arguments)` before every call of a module inside `model`; nothing is computed.

    Args:
        visit: may return a function, which is called, without arguments, after the module's call.
        example, call: how an attention layer is called, see `layout`.

    Returns:
        the abstract variables.
    """

    def intercept(function: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], context: Any) -> Any:
        if context.method_name != "__call__":
            return function(*args, **kwargs)
        after = visit(context.module, inspect.signature(function).bind(*args, **kwargs).arguments)
        result = function(*args, **kwargs)
        if after is not None:
            after()
        return result

    with nn.intercept_methods(intercept), plain_forms(), forward_mode():
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
