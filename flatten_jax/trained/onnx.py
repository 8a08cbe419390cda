"""A model as ONNX, through jax2onnx, for ONNX Runtime and what else reads it.

jax2onnx wants an older Orbax than the extra `train`, so an environment of its own has the base install and it.
"""

import importlib.util
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax

from flatten_jax.ops.platform import plain_forms
from flatten_jax.trained.stablehlo import check_target, put


def export_onnx(
    model: nn.Module, variables: Mapping[str, Any], target: str | os.PathLike, *, overwrite: bool = False
) -> Path:
    """The function "images" (B, height, width, 3), float32 and normalised -> "logits" (B, num_classes), for any B.

    The weights are in the file.

    Args:
        model: from `create_model`.
        variables: {"params": ...} of it, and its other collections.
        target: ends in .onnx.
        overwrite: replace an existing file; otherwise that is a ValueError.

    Raises:
        ImportError: jax2onnx is not installed.
        ValueError: the target, or an operation of the model that jax2onnx does not know.
    """
    target = check_target(target, ".onnx", overwrite)
    if importlib.util.find_spec("jax2onnx") is None:
        raise ImportError(
            "ONNX needs jax2onnx, which is not installed: make an environment beside that of training, and in it "
            "pip install 'flatten_jax[onnx]'"
        )
    import jax2onnx

    function = converted(model, variables)
    options = dict(model_name=type(model).__name__, input_names=["images"], output_names=["logits"])
    try:
        with plain_forms():
            written = jax2onnx.to_onnx(function, [("B", *model.image_size, 3)], **options)
    except NotImplementedError as error:
        raise ValueError(f"jax2onnx cannot write {type(model).__name__} as ONNX: {error}") from error
    put(target, written.SerializeToString())
    return target


def converted(model: nn.Module, variables: Mapping[str, Any]) -> Callable[[jax.Array], jax.Array]:
    """images -> logits, to be traced within `plain_forms`."""
    variables = jax.device_put(dict(variables))
    return lambda images: model.apply(variables, images)
