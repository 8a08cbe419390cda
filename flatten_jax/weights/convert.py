"""PyTorch state dicts to Flax variables and back, by one table of rules.

Modules carry the release's names, so a name differs only in how lists and leaves are written:
`blocks.0.attn.qkv.weight` is `blocks_0/attn/qkv/kernel`.
"""

import inspect
import re
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from flatten_jax.attention import WindowAttention, takes_bias
from flatten_jax.hosts.grids import relative_position_index, shift_mask
from flatten_jax.models import abstract_variables, dummy_images
from flatten_jax.weights.match import check_entries

# (Flax leaf, its number of dimensions) -> (PyTorch leaf, axes that take PyTorch's layout to Flax's).
_LEAVES = {
    ("kernel", 2): ("weight", (1, 0)),  # linear: [out, in]
    ("kernel", 4): ("weight", (2, 3, 1, 0)),  # convolution: [out, in, height, width]
    ("scale", 1): ("weight", (0,)),  # LayerNorm; the attention's own `scale` has three dimensions
}


def torch_name(path: tuple[str, ...], ndim: int) -> tuple[str, tuple[int, ...]]:
    """PyTorch's name of the Flax parameter at `path`, and the axes that take PyTorch's layout to Flax's."""
    leaf, axes = _LEAVES.get((path[-1], ndim), (path[-1], tuple(range(ndim))))
    modules = [re.sub(r"_(\d+)$", r".\1", module) for module in path[:-1]]
    return ".".join([*modules, leaf]), axes


def torch_shape(shape: tuple[int, ...], axes: tuple[int, ...]) -> tuple[int, ...]:
    """The shape in PyTorch of a Flax parameter, given the axes of `torch_name`."""
    return tuple(shape[axes.index(i)] for i in range(len(axes)))


def is_buffer(name: str) -> bool:
    """Whether PyTorch's name is that of a buffer computed from the image size, which no one needs to load."""
    return name.rpartition(".")[2] in ("relative_position_index", "attn_mask")


def from_torch(state_dict: Mapping[str, np.ndarray], model: nn.Module) -> dict[str, Any]:
    """Variables of `model` from a PyTorch state dict, strictly: every entry is used, every parameter is filled.

    For files, and for weights of another image size or number of classes, see `load_weights`.

    Args:
        state_dict: name -> array, as {k: v.numpy() for k, v in torch_model.state_dict().items()}; the buffers
            `relative_position_index` and `attn_mask` may be there or not.
        model: from `create_model`, of the same architecture, image size and number of classes.

    Returns:
        {"params": ...} of float32 NumPy arrays, for `model.apply`.

    Raises:
        ValueError: lists missing, unexpected and misshapen entries together.
    """
    leaves = flatten_dict(abstract_variables(model)["params"])
    rules = {path: torch_name(path, leaf.ndim) for path, leaf in leaves.items()}
    wanted = {name: torch_shape(leaves[path].shape, axes) for path, (name, axes) in rules.items()}
    arrays = {name: np.asarray(array) for name, array in state_dict.items() if not is_buffer(name)}
    check_entries(
        f"the state dict does not fit {type(model).__name__}", {k: v.shape for k, v in arrays.items()}, wanted
    )
    params = {
        path: np.ascontiguousarray(arrays[name].astype(np.float32).transpose(axes))
        for path, (name, axes) in rules.items()
    }
    return {"params": unflatten_dict(params)}


def to_torch(variables: Mapping[str, Any], model: nn.Module) -> dict[str, np.ndarray]:
    """The state dict that PyTorch's class of `model` loads with strict=True: the inverse of `from_torch`.

    Args:
        variables: {"params": ...} of `model`.

    Returns:
        name -> array, with the buffers of Swin's windows as the release computes them.

    Raises:
        ValueError: `variables` are not those of `model`; lists missing, unexpected and misshapen entries.
    """
    leaves = flatten_dict(abstract_variables(model)["params"])
    params = {path: np.asarray(array) for path, array in flatten_dict(dict(variables["params"])).items()}
    shapes = ({"/".join(path): leaf.shape for path, leaf in tree.items()} for tree in (params, leaves))
    check_entries(f"the variables are not those of this {type(model).__name__}", *shapes)
    state_dict = {}
    for path in leaves:
        name, axes = torch_name(path, leaves[path].ndim)
        state_dict[name] = np.ascontiguousarray(params[path].transpose(np.argsort(axes)))
    return {**state_dict, **_window_buffers(model)}


def _window_buffers(model: nn.Module) -> dict[str, np.ndarray]:
    buffers = {}

    def visit(module: nn.Module, arguments: Mapping[str, Any]) -> None:
        if not isinstance(module, WindowAttention):
            return
        *block, attention = (re.sub(r"_(\d+)$", r".\1", name) for name in module.scope.path)
        grid = arguments["grid"]
        window = tuple(min(module.window_size, side) for side in grid)
        padded = tuple(side + -side % size for side, size in zip(grid, window, strict=True))
        shift = tuple(
            size // 2 if module.shifted and size < side else 0 for side, size in zip(grid, window, strict=True)
        )
        if takes_bias(module.attn_type):
            index = relative_position_index(window).astype(np.int64)
            buffers[".".join([*block, attention, "relative_position_index"])] = index
        if any(shift):  # of linear blocks too, which do not look at it
            buffers[".".join([*block, "attn_mask"])] = shift_mask(padded, window, shift)

    visit_calls(model, visit)
    return buffers


def visit_calls(model: nn.Module, visit: Callable[[nn.Module, Mapping[str, Any]], None]) -> None:
    """Call `visit(module, arguments)` for every call of a module inside `model`; nothing is computed."""

    def intercept(call: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], context: nn.module.InterceptorContext):
        if context.method_name == "__call__":
            visit(context.module, inspect.signature(call).bind(*args, **kwargs).arguments)
        return call(*args, **kwargs)

    with nn.intercept_methods(intercept):
        jax.eval_shape(model.init, jax.random.key(0), jax.eval_shape(lambda: dummy_images(model)))
