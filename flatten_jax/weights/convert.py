"""PyTorch state dicts to Flax variables, by one table of rules.

Modules carry the release's names, so a name differs only in how lists and leaves are written:
`blocks.0.attn.qkv.weight` is `blocks_0/attn/qkv/kernel`.
"""

import re
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from flatten_jax.models import abstract_variables
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


def from_torch(state_dict: Mapping[str, np.ndarray], model: nn.Module) -> dict[str, Any]:
    """Variables of `model` from a PyTorch state dict, strictly: every entry is used, every parameter is filled.

    Args:
        state_dict: name -> array, as {k: v.numpy() for k, v in torch_model.state_dict().items()}.
        model: from `create_model`, of the same architecture, image size and number of classes.

    Returns:
        {"params": ...} of float32 NumPy arrays, for `model.apply`.

    Raises:
        ValueError: lists missing, unexpected and misshapen entries together.
    """
    leaves = flatten_dict(abstract_variables(model)["params"])
    rules = {path: torch_name(path, leaf.ndim) for path, leaf in leaves.items()}
    wanted = {
        name: tuple(leaves[path].shape[axes.index(i)] for i in range(len(axes))) for path, (name, axes) in rules.items()
    }
    arrays = {name: np.asarray(array) for name, array in state_dict.items()}
    check_entries(
        f"the state dict does not fit {type(model).__name__}", {k: v.shape for k, v in arrays.items()}, wanted
    )
    params = {
        path: np.ascontiguousarray(arrays[name].astype(np.float32).transpose(axes))
        for path, (name, axes) in rules.items()
    }
    return {"params": unflatten_dict(params)}
