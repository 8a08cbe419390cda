"""PyTorch state dicts to Flax variables and back, by the rows of `layout`."""

import logging
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import flax.linen as nn
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from flatten_jax.weights.kind import another_model
from flatten_jax.weights.layout import Row, entries, is_buffer, layout, window_buffers
from flatten_jax.weights.match import check_entries
from flatten_jax.weights.pickle_values import widened
from flatten_jax.weights.streams import regrouped

logger = logging.getLogger(__name__)


def from_torch(state_dict: Mapping[str, Any], model: nn.Module, example: Any = None, **call: Any) -> dict[str, Any]:
    """Variables of `model` from a PyTorch state dict, strictly: every entry is used, every variable is filled.

    For files, and for weights of another image size or number of classes, see `load_weights`.

    Args:
        state_dict: name -> array or tensor, such as torch_model.state_dict(), on any device and of any floating-point
            type. Buffers that are computed (`relative_position_index`, `attn_mask`, rotary angles, ...) may be there or
            not, and so may the second of two names of the same weights (SReT's shared blocks).
        model: from `create_model`, of the same architecture, image size and number of classes; or an attention layer
            (`LinearAttention`), which takes the names of the mechanism's original code.
        example: of an attention layer, an input (B, N, C) or a map.
        **call: of an attention layer, how it is called: grid=(14, 14), prefix=1.

    Returns:
        {"params": ...} of float32 NumPy arrays, for `model.apply`; and the model's other collections, if it has any.

    Raises:
        ValueError: see `load_weights`.
    """
    rows = layout(model, example, **call)
    wanted = entries(rows)
    given = {name: as_array(array) for name, array in state_dict.items()}
    arrays = {name: array for name, array in given.items() if not is_buffer(name, wanted)}
    if broken := not_finite(arrays):
        logger.warning("the state dict holds %s", broken)
    arrays = regrouped(rows, arrays)
    shapes = {name: array.shape for name, array in arrays.items()}
    what = f"the state dict does not fit {type(model).__name__}"
    if shapes != wanted:
        what += another_model(given, model)
    check_entries(what, shapes, wanted)
    return as_variables((row, float32(row.from_torch(arrays))) for row in rows)


def to_torch(variables: Mapping[str, Any], model: nn.Module, example: Any = None, **call: Any) -> dict[str, np.ndarray]:
    """The state dict that PyTorch's class of `model` loads with strict=True: the inverse of `from_torch`.

    Args:
        variables: {"params": ...} of `model`, and its other collections.
        model: from `create_model`, or an attention layer.
        example: of an attention layer, see `from_torch`.
        **call: likewise.

    Returns:
        name -> array, with the buffers of Swin's windows as the release computes them, and shared weights twice.

    Raises:
        ValueError: `variables` are not those of `model`; lists missing, unexpected and misshapen entries.
    """
    rows = layout(model, example, **call)
    arrays = flat(variables)
    check_entries(
        f"the variables are not those of this {type(model).__name__}",
        {name: array.shape for name, array in arrays.items()},
        {row.ours: row.shape for row in rows},
    )
    found = {name: array for row in rows for name, array in row.to_torch(arrays[row.ours]).items()}
    if example is not None:
        return found
    return found | window_buffers(model) | model.torch_buffers() | model.torch_copies(found)


def flat(variables: Mapping[str, Any], leaf: Callable[[Any], Any] = np.asarray) -> dict[str, Any]:
    """Variables by the names that `Row.ours` and our own files have, each given to `leaf`."""
    return {
        "/".join(path if collection == "params" else (collection, *path)): leaf(array)
        for collection, tree in variables.items()
        for path, array in flatten_dict(dict(tree)).items()
    }


def as_array(value: Any) -> np.ndarray:
    """A tensor of PyTorch, of JAX or of NumPy as a NumPy array, bfloat16 as float32. PyTorch is not imported."""
    if hasattr(value, "detach"):
        value = value.detach().cpu()
        if getattr(value, "is_sparse", False):
            value = value.to_dense()
        if "bfloat16" in str(value.dtype) or "float8" in str(value.dtype):  # which PyTorch gives NumPy no type for
            value = value.float()
        value = value.numpy()
    return widened(np.asarray(value))


def not_finite(arrays: Mapping[str, np.ndarray], most: int = 8) -> str:
    """What is to be said of numbers that are none, or infinite: which entries have them. "" if there are none."""
    floating = {name: array for name, array in arrays.items() if np.issubdtype(array.dtype, np.floating)}
    broken = [name for name, array in sorted(floating.items()) if not np.isfinite(array).all()]
    listed = ", ".join(broken[:most]) + (", ..." if len(broken) > most else "")
    return f"not-a-number or infinite values in {len(broken)} of {len(arrays)} entries: {listed}" if broken else ""


def float32(array: np.ndarray) -> np.ndarray:
    """Floating-point numbers in float32; integers, which constants may be, as they are."""
    return np.ascontiguousarray(array, np.float32 if np.issubdtype(array.dtype, np.floating) else None)


def as_variables(arrays: Iterable[tuple[Row, np.ndarray]]) -> dict[str, Any]:
    """{"params": ..., ...} of the rows of a model, each with its array."""
    collections: dict[str, dict[tuple[str, ...], np.ndarray]] = {"params": {}}
    for row, array in arrays:
        collections.setdefault(row.collection, {})[row.path] = array
    return {name: unflatten_dict(tree) for name, tree in collections.items()}
