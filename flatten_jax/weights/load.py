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
from flax.traverse_util import flatten_dict

from flatten_jax.models import create_model, dummy_images, parameters_left_out
from flatten_jax.models.create import classifier_of
from flatten_jax.models.settings import attention_settings
from flatten_jax.weights.convert import as_variables, flat
from flatten_jax.weights.layout import Row, entries, is_buffer, layout, regrouped
from flatten_jax.weights.match import Shape, check_entries
from flatten_jax.weights.resample import fit
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
    new_attention: bool = False,
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
        new_attention: make an attention's own parameters new where the file has none, such as those of another
            attention: q, k, v and everything else are inherited.
        resample: fit position encodings and bias tables of another image size (bicubic); otherwise that is an error.

    Returns:
        {"params": ...} of float32 NumPy arrays, and the model's other collections, if it has any.

    Raises:
        FileNotFoundError, ValueError: see `read_torch`; or lists missing, unexpected and misshapen entries together.
    """
    variables, report = load_with_report(
        source, model, ema=ema, new_head=new_head, new_attention=new_attention, resample=resample
    )
    unusual = report.resampled or report.made or report.notes
    logger.log(logging.WARNING if unusual else logging.INFO, "%s", report)
    return variables


def load_with_report(
    source: str | os.PathLike | Mapping[str, Any],
    model: nn.Module,
    *,
    ema: bool = False,
    new_head: bool = False,
    new_attention: bool = False,
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
    source_rows = None
    if ours and "model" in info.metadata:
        saved = saved_model(info)
    if saved is not None:
        _check_same_kind(label, info.metadata.get("model", "weights"), saved, model)
        source_rows = layout(saved) if saved.image_size != model.image_size else None

    rows = layout(model)
    wanted = {row.ours: row.shape for row in rows} if ours else entries(rows)
    surplus = _left_out(model, ours)
    ignored = [name for name in arrays if is_buffer(name) or name in surplus]
    given = {name: array for name, array in arrays.items() if name not in ignored}
    given = given if ours else regrouped(rows, given)
    names = {row.ours: (row.ours,) if ours else tuple(row.entries()) for row in rows}
    made_rows = {
        row.ours
        for row in rows
        if (new_head and row.path[0] == "head")
        or (new_attention and row.site is not None and not row.letters and not set(names[row.ours]) & set(given))
        or (_is_feature_norm(row.path, model) and not set(names[row.ours]) & set(given))
    }
    made = {name for ours_name in made_rows for name in names[ours_name]}

    resampled: dict[str, tuple[Shape, Shape]] = {}
    for row in rows:
        (name, *more) = names[row.ours]
        if resample and not more and name not in made and name in given and given[name].shape != wanted[name]:
            fitted = fit(row, given[name], wanted[name], rows, source_rows)
            if fitted is not None and fitted.shape == wanted[name]:
                resampled[name] = (given[name].shape, fitted.shape)
                given[name] = fitted

    given_shapes = {name: array.shape for name, array in given.items()}
    head = {name for row in rows if row.path[0] == "head" for name in names[row.ours]}
    hint = _hint(head - made, given_shapes, wanted)
    check_entries(f"{label} does not fit {_describe(model)}", given_shapes, wanted, made, hint)
    odd = [f"{name} ({array.dtype})" for name, array in given.items() if not np.issubdtype(array.dtype, np.floating)]
    if odd:
        raise ValueError(f"{label} holds weights that are not floating-point: {', '.join(odd)}")

    new = _initial(model, made_rows)

    def filled(row: Row) -> np.ndarray:
        if row.ours in made_rows:
            return new[row.ours]
        return np.ascontiguousarray((given[row.ours] if ours else row.from_torch(given)).astype(np.float32))

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
    return as_variables((row, filled(row)) for row in rows), report


def read_weights(
    source: str | os.PathLike | Mapping[str, Any], *, ema: bool = False
) -> tuple[str, dict[str, np.ndarray], FileInfo]:
    """(label for messages, name -> array, what the source says besides) of a file, a state dict, or variables."""
    if not isinstance(source, Mapping):
        return str(source), *read_torch(source, ema=ema)
    if ema:
        raise ValueError("ema=True chooses among the entries of a file; a mapping is taken as it is")
    if "params" in source:
        return "the variables", flat(source), FileInfo("variables", metadata={"format": FORMAT})
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
    return {"attn_type": model.attentions(), "num_heads": model.num_heads, **attention_settings(model)}


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
    left_out, full = parameters_left_out(model), layout(classifier_of(model))
    rows = [row for row in full if row.path in left_out]
    return {row.ours for row in rows} if ours else set(entries(rows))


def _is_feature_norm(path: tuple[str, ...], model: nn.Module) -> bool:
    return model.features_only and model.feature_norm and re.fullmatch(r"norm\d+", path[0]) is not None


def _initial(model: nn.Module, names: set[str]) -> dict[str, np.ndarray]:
    """The model's own initial values of some rows; what else `init` computes is cut away by the compiler."""
    if not names:
        return {}

    def chosen(key: jax.Array) -> dict[str, jax.Array]:
        variables = model.init(key, dummy_images(model))
        leaves = {
            "/".join(path if collection == "params" else (collection, *path)): leaf
            for collection, tree in variables.items()
            for path, leaf in flatten_dict(tree).items()
        }
        return {name: leaves[name] for name in sorted(names)}

    return {name: np.asarray(x) for name, x in jax.jit(chosen)(jax.random.key(_NEW_HEAD_SEED)).items()}


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
