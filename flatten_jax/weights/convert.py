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
    params, used, missing, misshapen = {}, set(), [], []
    for path, leaf in flatten_dict(abstract_variables(model)["params"]).items():
        name, axes = torch_name(path, leaf.ndim)
        if name not in state_dict:
            missing.append(name)
            continue
        used.add(name)
        array = np.asarray(state_dict[name])
        expected = tuple(leaf.shape[axes.index(i)] for i in range(leaf.ndim))
        if array.shape != expected:
            misshapen.append(f"{name}: {array.shape} given, {expected} expected")
        else:
            params[path] = np.ascontiguousarray(array.astype(np.float32).transpose(axes))
    unexpected = sorted(set(state_dict) - used)
    problems = {"missing": missing, "unexpected": unexpected, "misshapen": misshapen}
    if any(problems.values()):
        lists = "".join(f"\n  {kind} ({len(v)}): {', '.join(v)}" for kind, v in problems.items() if v)
        raise ValueError(f"the state dict does not fit {type(model).__name__}:{lists}")
    return {"params": unflatten_dict(params)}
