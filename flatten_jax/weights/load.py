"""Weights from any file into a model: matched strictly, fitted to the image size, and reported."""

import json
import logging
import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from flatten_jax.attention import mixer_options
from flatten_jax.models import abstract_variables, create_model, dummy_images, parameters_left_out
from flatten_jax.weights.convert import is_buffer, torch_name, torch_shape
from flatten_jax.weights.match import Shape, check_entries
from flatten_jax.weights.resample import fit, token_grids
from flatten_jax.weights.torch_file import FileInfo, read_torch

FORMAT = "flatten_jax"  # `format` in the metadata of our own safetensors; PyTorch's says "pt"
_NEW_HEAD_SEED = 0

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Report:
    """What became of each entry of a file; str() is the text for people.

    Attributes:
        source, model: what was loaded into what.
        matched: names that were taken as they are.
        resampled: name -> (shape in the file, shape in the model).
        ignored: names that no model needs.
        made: names that the file need not have: made new.
        notes: further lines.
    """

    source: str
    model: str
    matched: tuple[str, ...]
    resampled: Mapping[str, tuple[Shape, Shape]] = field(default_factory=dict)
    ignored: tuple[str, ...] = ()
    made: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        lines = [f"{self.source} -> {self.model}", f"  matched {len(self.matched)}"]
        if self.resampled:
            changes = (f"{_leaf(name)} {old} -> {new}" for name, (old, new) in self.resampled.items())
            lines += [f"  resampled {len(self.resampled)}", *(f"    {change}" for change in _counted(changes))]
        if self.ignored:
            kinds = (_leaf(name) if is_buffer(name) else name for name in self.ignored)
            lines.append(f"  ignored {len(self.ignored)}: {', '.join(_counted(kinds))}")
        if self.made:
            lines.append(f"  made new {len(self.made)}: {', '.join(self.made)}")
        return "\n".join([*lines, *(f"  note: {note}" for note in self.notes)])


def load_weights(
    source: str | os.PathLike | Mapping[str, Any],
    model: nn.Module,
    *,
    ema: bool = False,
    new_head: bool = False,
    resample: bool = True,
) -> dict[str, Any]:
    """Variables of `model` from a file of weights: `model.apply(load_weights("flatten_swin_t.pth", model), images)`.

    Every parameter is filled and every entry used, or it is an error. The report of `load_with_report` goes to the
    log: as a warning where something was resampled or made new or has a note, else as information.

    Args:
        source: a `.pth`, `.pt` or `.bin` of PyTorch, a `.safetensors` of PyTorch or of `flatten-jax convert`; or a
            PyTorch state dict of arrays, or variables {"params": ...}.
        model: from `create_model`.
        ema: take the moving average of the weights that the file holds beside them.
        new_head: make the classifier new, for another number of classes, instead of loading it.
        resample: fit position encodings and bias tables of another image size (bicubic); otherwise that is an error.

    Returns:
        {"params": ...} of float32 NumPy arrays.

    Raises:
        FileNotFoundError, ValueError: see `read_torch`; or lists missing, unexpected and misshapen entries together.
    """
    variables, report = load_with_report(source, model, ema=ema, new_head=new_head, resample=resample)
    unusual = report.resampled or report.made or report.notes
    logger.log(logging.WARNING if unusual else logging.INFO, "%s", report)
    return variables


def load_with_report(
    source: str | os.PathLike | Mapping[str, Any],
    model: nn.Module,
    *,
    ema: bool = False,
    new_head: bool = False,
    resample: bool = True,
    saved: nn.Module | None = None,
) -> tuple[dict[str, Any], Report]:
    """As `load_weights`; returns the variables and the Report, and logs nothing.

    Args:
        saved: the model that variables {"params": ...} are of. It tells the grids of another image size, and options
            that leave no trace in a shape. A file of ours says this itself.
    """
    label, arrays, info = read_weights(source, ema=ema)
    ours = info.metadata.get("format") == FORMAT
    source_grids = None
    if ours and "model" in info.metadata:
        saved = saved_model(info)
    if saved is not None:
        _check_same_kind(label, info.metadata.get("model", "weights"), saved, model)
        source_grids = token_grids(saved) if saved.image_size != model.image_size else None

    leaves = flatten_dict(abstract_variables(model)["params"])
    rules = {p: ("/".join(p), tuple(range(x.ndim))) if ours else torch_name(p, x.ndim) for p, x in leaves.items()}
    wanted = {name: torch_shape(leaves[path].shape, axes) for path, (name, axes) in rules.items()}
    surplus = _left_out(model, ours)
    ignored = [name for name in arrays if is_buffer(name) or name in surplus]
    given = {name: array for name, array in arrays.items() if name not in ignored}
    head = {name for path, (name, _) in rules.items() if path[0] == "head"}
    made = {
        name
        for path, (name, _) in rules.items()
        if (new_head and name in head) or (_is_feature_norm(path, model) and name not in given)
    }

    resampled: dict[str, tuple[Shape, Shape]] = {}
    grids = None
    for path, (name, _) in rules.items():
        if resample and name not in made and name in given and given[name].shape != wanted[name]:
            grids = grids or token_grids(model)
            fitted = fit(path, given[name], wanted[name], grids, source_grids)
            if fitted is not None and fitted.shape == wanted[name]:
                resampled[name] = (given[name].shape, fitted.shape)
                given[name] = fitted

    given_shapes = {name: array.shape for name, array in given.items()}
    hint = _hint(head - made, given_shapes, wanted)
    check_entries(f"{label} does not fit {_describe(model)}", given_shapes, wanted, made, hint)
    odd = [f"{name} ({array.dtype})" for name, array in given.items() if not np.issubdtype(array.dtype, np.floating)]
    if odd:
        raise ValueError(f"{label} holds weights that are not floating-point: {', '.join(odd)}")

    new = _initial(model, {path for path, (name, _) in rules.items() if name in made})
    params = {
        path: new[path] if name in made else np.ascontiguousarray(given[name].astype(np.float32).transpose(axes))
        for path, (name, axes) in rules.items()
    }
    dropped = [name for name in made if name in given]
    report = Report(
        source=label + (f" ({info.key})" if info.key else ""),
        model=_describe(model),
        matched=tuple(name for name in wanted if name not in made and name not in resampled),
        resampled=resampled,
        ignored=(*ignored, *sorted(dropped)),
        made=tuple(name for name in wanted if name in made),
        notes=(*info.notes, *_other_attention(info, model)),
    )
    return {"params": unflatten_dict(params)}, report


def read_weights(
    source: str | os.PathLike | Mapping[str, Any], *, ema: bool = False
) -> tuple[str, dict[str, np.ndarray], FileInfo]:
    """(label for messages, name -> array, what the source says besides) of a file, a state dict, or variables."""
    if not isinstance(source, Mapping):
        return str(source), *read_torch(source, ema=ema)
    if ema:
        raise ValueError("ema=True chooses among the entries of a file; a mapping is taken as it is")
    if "params" in source:
        arrays = flatten_dict(dict(source["params"]), sep="/")
        return "the variables", _as_numpy(arrays), FileInfo("variables", metadata={"format": FORMAT})
    return "the state dict", _as_numpy(source), FileInfo("state dict")


def saved_model(info: FileInfo) -> nn.Module:
    """The model that a file of ours was saved from, as its metadata describe it."""
    return create_model(info.metadata["model"], **json.loads(info.metadata.get("options", "{}")))


def _as_numpy(arrays: Mapping[str, Any]) -> dict[str, np.ndarray]:
    return {name: np.asarray(array) for name, array in arrays.items()}


def _check_same_kind(label: str, name: str, saved: nn.Module, model: nn.Module) -> None:
    """Weights may have the right shapes and still mean another function; our own files say which."""
    if type(saved) is not type(model):
        raise ValueError(f"{label} holds {name}, a {type(saved).__name__}; the model is a {type(model).__name__}")
    differ = [
        f"{key}={theirs[key]!r} (the model has {ours[key]!r})"
        for theirs, ours in [(_meaning(saved), _meaning(model))]
        for key in theirs
        if theirs[key] != ours.get(key, theirs[key])
    ]
    if differ:
        raise ValueError(f"{label} holds {name} with {', '.join(differ)}: give create_model the same options")


def _meaning(model: nn.Module) -> dict[str, Any]:
    blocks = "-".join(model.block_letters())
    options = {key: value for letter in sorted({*blocks} - {"-"}) for key, value in mixer_options(letter).items()}
    return {"attn_type": blocks, "num_heads": model.num_heads, **options, **dict(model.attn_options)}


def _hint(head: set[str], given: Mapping[str, Shape], wanted: Mapping[str, Shape]) -> str:
    classes = [(given[n][0], wanted[n][0]) for n in head if n.endswith("bias") and given.get(n, wanted[n]) != wanted[n]]
    if not classes:
        return ""
    theirs, ours = classes[0]
    return (
        f"\n  the weights have {theirs} classes, the model {ours}: new_head=True (--new-head, of main.py "
        f"--config.init_new_head=True) makes a new head and keeps the rest, "
        f"create_model(..., num_classes={theirs}) takes theirs"
    )


def _left_out(model: nn.Module, ours: bool) -> set[str]:
    """Names that a classification checkpoint holds and a model without head or without last levels has no place for."""
    if model.num_classes and not model.features_only:
        return set()
    paths = parameters_left_out(model)
    return {"/".join(p) for p in paths} if ours else {torch_name(p, ndim)[0] for p in paths for ndim in (1, 2, 3, 4)}


def _is_feature_norm(path: tuple[str, ...], model: nn.Module) -> bool:
    return model.features_only and model.feature_norm and re.fullmatch(r"norm\d+", path[0]) is not None


def _initial(model: nn.Module, paths: set[tuple[str, ...]]) -> dict[tuple[str, ...], np.ndarray]:
    """The model's own initial values; what else `init` computes is cut away by the compiler."""
    if not paths:
        return {}

    def chosen(key: jax.Array) -> dict[tuple[str, ...], jax.Array]:
        leaves = flatten_dict(model.init(key, dummy_images(model))["params"])
        return {path: leaves[path] for path in sorted(paths)}

    return {path: np.asarray(x) for path, x in jax.jit(chosen)(jax.random.key(_NEW_HEAD_SEED)).items()}


def _describe(model: nn.Module) -> str:
    height, width = model.image_size
    return f"{type(model).__name__} of {height} x {width} pixels and {model.num_classes} classes"


def _leaf(name: str) -> str:
    return name.replace("/", ".").rpartition(".")[2]


def _counted(items: Iterable[str]) -> list[str]:
    return [f"{n} x {item}" if n > 1 else item for item, n in Counter(items).items()]


def _other_attention(info: FileInfo, model: nn.Module) -> tuple[str, ...]:
    """A note where the release's config in the file names a focusing factor, which no shape shows, and it differs."""
    theirs, ours = focusing_factor(info), _meaning(model).get("focusing_factor")
    if theirs is None or ours is None or theirs == ours:
        return ()
    return (f"the config in the file says FOCUSING_FACTOR {theirs}, the model has focusing_factor={ours}",)


def focusing_factor(info: FileInfo) -> float | None:
    """What the release's config (a CfgNode) in a file says."""
    value: Any = info.extra
    for key in ("config", "MODEL", "LA", "FOCUSING_FACTOR"):
        value = value.get(key) if isinstance(value, Mapping) else None
    return value if isinstance(value, (int, float)) else None
