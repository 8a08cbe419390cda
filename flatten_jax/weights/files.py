"""The public form of weights, safetensors with the config in the metadata; converting to it, exporting to PyTorch."""

import dataclasses
import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import numpy as np
from safetensors.numpy import save_file

from flatten_jax import paths
from flatten_jax._version import __version__
from flatten_jax.models import create_model, model_options
from flatten_jax.models.registry import ALIASES
from flatten_jax.weights.array_files import FORMAT
from flatten_jax.weights.convert import flat, to_torch
from flatten_jax.weights.guess import guess, told_by_config
from flatten_jax.weights.kind import foreign_hint
from flatten_jax.weights.load import load_with_report, read_weights, saved_model
from flatten_jax.weights.names import likely, not_timms
from flatten_jax.weights.report import Report

LICENCE_NOTE = "weights of the FLatten release carry no licence; check before redistribution"
_ORIGIN = ("source", "source_sha256", "source_weights", "licence")  # keys of the metadata
OF_TRAINING = ("dtype", "drop_path", "remat", "remat_policy", "scan")  # options that do not belong to the weights


def save_weights(
    target: str | os.PathLike,
    variables: Mapping[str, Any],
    name: str,
    options: Mapping[str, Any] | None = None,
    *,
    metadata: Mapping[str, str] | None = None,
    overwrite: bool = False,
) -> None:
    """Variables as safetensors: Flax names joined by "/", and in the metadata how to make the model again.

    Args:
        target: ends in .safetensors.
        variables: {"params": ...}, and the model's other collections.
        name: as given to `create_model`.
        options: likewise.
        metadata: further entries, such as where the weights come from.
        overwrite: replace an existing file; otherwise that is a ValueError.
    """
    model = create_model(name, **(options or {}))
    name = ALIASES.get(name, name)
    kept = {k: v for k, v in (options or {}).items() if k not in OF_TRAINING}
    kept |= {"image_size": model.image_size, "num_classes": model.num_classes}
    arrays = {name: np.ascontiguousarray(array) for name, array in flat(variables).items()}
    described = {"format": FORMAT, "flatten_jax": __version__, "model": name, "options": json.dumps(kept)}
    _write(target, arrays, {**described, **(metadata or {})}, overwrite)


def convert_file(
    source: str | os.PathLike,
    target: str | os.PathLike,
    model: str | None = None,
    *,
    ema: bool = False,
    key: str | None = None,
    new_head: bool = False,
    new_attention: bool = False,
    overwrite: bool = False,
    **options: Any,
) -> Report:
    """Weights of PyTorch (or of this library) as safetensors of this library.

    Args:
        source: as `load_weights` takes it.
        target: ends in .safetensors; its metadata name the model and its options, the source and its SHA-256.
        model: a name of `list_models()`; None reads it off the metadata, or guesses it from the shapes.
        ema, key, new_head, new_attention: see `load_weights`.
        overwrite: replace an existing target.
        **options: of `create_model`, such as image_size and num_classes, where they differ from the model's.

    Returns:
        What became of each entry; str() of it is the report.
    """
    _check_target(target, overwrite)
    found = model_of(source, model, ema=ema, key=key, **options)
    choice = dict(ema=ema, key=key, new_head=new_head, new_attention=new_attention)
    variables, report = load_with_report(source, found.model, **choice)
    metadata = _origin(source, ema)
    save_weights(target, variables, found.name, found.options, metadata=metadata, overwrite=overwrite)
    return dataclasses.replace(report, notes=(*report.notes, *found.notes))


def export_file(
    source: str | os.PathLike | Mapping[str, Any],
    target: str | os.PathLike,
    model: str | nn.Module | None = None,
    *,
    ema: bool = False,
    key: str | None = None,
    overwrite: bool = False,
    **options: Any,
) -> Report:
    """Weights under PyTorch's names, buffers included: the release's class loads them with strict=True.

    In PyTorch: model.load_state_dict(safetensors.torch.load_file(target)).

    Args:
        source: as `load_weights` takes it, or variables {"params": ...}, then with `model`.
        target: ends in .safetensors.
        model: a module or a name of `list_models()`; None as in `convert_file`.
        **options: of `create_model`.
    """
    _check_target(target, overwrite)
    if not isinstance(model, nn.Module):
        model = model_of(source, model, ema=ema, key=key, **options).model
    variables, report = load_with_report(source, model, ema=ema, key=key)
    arrays = to_torch(variables, model)
    _write(target, arrays, {"format": "pt", "licence": LICENCE_NOTE}, overwrite)
    note = not_timms(arrays)
    return dataclasses.replace(report, notes=(*report.notes, note)) if note else report


def sha256(path: str | os.PathLike) -> str:
    """Of a file, in hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def origin_of(source: str | os.PathLike, *, ema: bool = False, key: str | None = None) -> dict[str, str]:
    """Where the weights of a file are from: what `convert_file` wrote into it, or the file itself."""
    metadata = read_weights(source, ema=ema, key=key)[2].metadata
    if metadata.get("format") == FORMAT:
        return {key: metadata[key] for key in _ORIGIN if key in metadata} or {"source": Path(source).name}
    return _origin(source, ema)


def _origin(source: str | os.PathLike, ema: bool) -> dict[str, str]:
    found = {"source": Path(source).name, "source_sha256": sha256(source), "licence": LICENCE_NOTE}
    return {**found, "source_weights": "moving average"} if ema else found


class Found(NamedTuple):
    """The model that weights are for: `create_model(name, **options)`, and what was left open in finding it."""

    model: nn.Module
    name: str
    options: dict[str, Any]
    notes: tuple[str, ...] = ()


def model_of(
    source: Any, name: str | None = None, *, ema: bool = False, key: str | None = None, **options: Any
) -> Found:
    """The model that `source` is for; what it says of itself yields to `options`.

    Args:
        source: as `load_weights` takes it.
        name: of the model; None reads it off the metadata of a file of ours, and guesses it from a PyTorch file.
        options: of `create_model`.

    Raises:
        ValueError: nothing says which model it is; an option that does not fit.
    """
    found: dict[str, Any] = {}
    notes: tuple[str, ...] = ()
    if name is None:
        label, arrays, info = read_weights(source, ema=ema, key=key)
        if "model" in info.metadata and info.metadata.get("format") == FORMAT:
            saved_model(info)
            name, found = info.metadata["model"], json.loads(info.metadata.get("options", "{}"))
        elif info.metadata.get("format") == FORMAT:
            raise ValueError(f"{label} do not say which model they are of: give its name")
        else:
            arrays = likely(arrays)[0]
            try:
                name, found, notes = guess(arrays)
            except ValueError as error:
                said = foreign_hint(arrays)
                raise ValueError(f"{label}: {error}; give the model's name (--model){said}") from error
            known = model_options(name, found.get("attn_type"))
            told = told_by_config(info.extra)
            found |= {key: value for key, value in told.items() if key in known and known[key] != value}
    if "attn_type" in options:  # the options of other attentions would have no effect
        known = model_options(name, options["attn_type"])
        found = {key: value for key, value in found.items() if key in known}
    found = {**found, **options}
    return Found(create_model(name, **found), name, found, notes if "attn_type" not in options else ())


def _check_target(target: str | os.PathLike, overwrite: bool) -> None:
    target = paths.local(target)
    if target.suffix != ".safetensors":
        raise ValueError(f"the target {target} must end in .safetensors")
    if target.exists() and not overwrite:
        raise ValueError(f"{target} exists already: choose another name, or overwrite=True (--overwrite)")


def _write(
    target: str | os.PathLike, arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str], overwrite: bool
) -> None:
    """All or nothing: a file of that name is either the old one or the whole new one."""
    _check_target(target, overwrite)
    target = Path(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    os.close(handle)
    try:
        save_file(dict(arrays), temporary, metadata=dict(metadata))
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)  # mkstemp's files are for their owner alone
        os.replace(temporary, target)
    except BaseException:
        os.unlink(temporary)
        raise
