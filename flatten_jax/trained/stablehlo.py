"""A model as StableHLO: one file that computes its logits anywhere JAX or another StableHLO runtime is, without us."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import export

from flatten_jax import paths

PLATFORMS = ("cpu", "cuda", "tpu")


def export_stablehlo(
    model: nn.Module, variables: Mapping[str, Any], target: str | os.PathLike, *, overwrite: bool = False
) -> export.Exported:
    """The function images (b, height, width, 3), float32 and normalised -> logits (b, num_classes), for any b.

    The weights are constants in it: the file needs no other to go with, and whoever runs it needs not know how Flax
    orders parameters. In exchange it is as large as the weights, and other weights are another export.

        exported = jax.export.deserialize(bytearray(Path(target).read_bytes()))
        logits = exported.call(images)

    Args:
        model: from `create_model`.
        variables: {"params": ...} of it, and its other collections.
        target: ends in .stablehlo.
        overwrite: replace an existing file; otherwise that is a ValueError.

    Returns:
        what was written.
    """
    target = check_target(target, ".stablehlo", overwrite)
    variables = jax.device_put(dict(variables))
    (batch,) = export.symbolic_shape("b")
    images = jax.ShapeDtypeStruct((batch, *model.image_size, 3), jnp.float32)
    exported = export.export(jax.jit(lambda images: model.apply(variables, images)), platforms=PLATFORMS)(images)
    put(target, exported.serialize())
    return exported


def check_target(target: str | os.PathLike, ending: str, overwrite: bool) -> Path:
    """The path of a file to write; ValueError where it ends otherwise, or is there and shall not be replaced."""
    target = paths.local(target)
    if target.suffix != ending:
        raise ValueError(f"the target {target} must end in {ending}")
    if target.exists() and not overwrite:
        raise ValueError(f"{target} exists already: choose another name, or overwrite=True (--overwrite)")
    return target


def put(target: Path, content: bytes) -> None:
    """Writes a file, whole or not at all."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        temporary.write_bytes(content)
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)
