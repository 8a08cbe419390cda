"""Weights from any file into a model: matched strictly, fitted to the image size, and reported."""

import dataclasses
import json
import logging
import os
from collections.abc import Mapping
from functools import partial
from typing import Any

import flax.linen as nn
import numpy as np

from flatten_jax.models import create_model, parameters_left_out
from flatten_jax.models.create import classifier_of, parameters_added
from flatten_jax.segmentation.model import Segmenter
from flatten_jax.weights import segmenter
from flatten_jax.weights.array_files import FORMAT
from flatten_jax.weights.containers import is_tree, weights_in
from flatten_jax.weights.convert import as_array, as_variables, flat, float32, from_torch, not_finite
from flatten_jax.weights.kind import (
    another_model,
    attention_hint,
    check_same_kind,
    describe,
    foreign_hint,
    head_hint,
    other_options,
    strangers,
    with_attentions_of,
)
from flatten_jax.weights.layout import Row, entries, is_buffer, layout
from flatten_jax.weights.match import Shape, check_entries
from flatten_jax.weights.names import fitting, unwrapped
from flatten_jax.weights.new import inherit, initial
from flatten_jax.weights.report import Report
from flatten_jax.weights.resample import fit
from flatten_jax.weights.streams import regrouped
from flatten_jax.weights.torch_file import FileInfo, read_torch

logger = logging.getLogger(__name__)


def load_weights(
    source: str | os.PathLike | Mapping[str, Any],
    model: nn.Module,
    *,
    ema: bool = False,
    key: str | None = None,
    new_head: bool = False,
    new_attention: bool = False,
    resample: bool = True,
    example: Any = None,
    **call: Any,
) -> dict[str, Any]:
    """Variables of `model` from a file of weights: `model.apply(load_weights("flatten_swin_t.pth", model), images)`.

    Every parameter is filled and every entry used, or it is an error. From a larger model, such as a detector, the part
    with the model's names is taken. The report of `load_with_report` goes to the log. It is a warning where something
    was resampled or made new or has a note, else information.

    Args:
        source: a `.pth`, `.pt` or `.bin` of PyTorch, a `.safetensors` of PyTorch or of `flatten-jax convert`, a `.npz`
            of arrays; a run's folder, one of its checkpoints, a shared folder, or "hf://owner/name"; or a state dict
            of arrays or PyTorch's tensors, what torch.load gives, variables {"params": ...}, or their tree alone.
        model: from `create_model`; or an attention layer (`LinearAttention`), then with `example`.
        ema: take the moving average of the weights that the file holds beside them.
        key: where in the file the weights are, such as "teacher" or "state_dict.backbone", if not where they are
            looked for (`weights.containers`).
        new_head: make the classifier new, for another number of classes, instead of loading it.
        new_attention: the weights are of a model with other attentions. Their projections (q, k, v, as far as both have
            them) and everything else are inherited, the attentions' own parameters are made new.
        resample: fit position encodings and bias tables of another image size (bicubic); otherwise that is an error.
        example: of an attention layer, see `from_torch`. A layer takes a PyTorch file as it is, and no other argument.
        **call: of an attention layer, see `from_torch`.

    Returns:
        {"params": ...} of float32 NumPy arrays, and the model's other collections, if it has any.

    Raises:
        FileNotFoundError, ValueError: see `read_torch`; or says what is missing, unexpected and misshapen, and which
            other model the weights are of.
    """
    if example is not None:
        label, arrays, _ = read_weights(source, ema=ema, key=key)
        arrays, _, dropped = fitting(label, arrays, entries(layout(model, example, **call)))
        for line in dropped:
            logger.warning("%s: %s", label, line)
        return from_torch(arrays, model, example, **call)
    variables, report = load_with_report(
        source, model, ema=ema, key=key, new_head=new_head, new_attention=new_attention, resample=resample
    )
    unusual = report.resampled or report.made or report.notes
    logger.log(logging.WARNING if unusual else logging.INFO, "%s", report)
    return variables


def load_with_report(
    source: str | os.PathLike | Mapping[str, Any],
    model: nn.Module,
    *,
    ema: bool = False,
    key: str | None = None,
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
    place = ""
    if not isinstance(source, Mapping):
        from flatten_jax.trained.load import opened  # which builds on this file, and knows what folders hold

        place, source, saved_there = opened(source, ema=ema)
        saved = saved or saved_there
    label, arrays, info = read_weights(source, ema=ema, key=key)
    label = place or label
    if _is_ours(info) and "model" in info.metadata:
        saved = saved_model(info)
    choice = dict(new_head=new_head, resample=resample)
    if isinstance(model, Segmenter):
        if not segmenter.has_head(arrays):
            part = segmenter.backbone_for(arrays, model)
            return segmenter.with_new_heads(
                model, part, *_loaded(label, arrays, info, saved, part, new_attention, **choice)
            )
        if new_attention:
            raise ValueError(
                f"new_attention is for the weights of a classifier; {label} are of a segmenter: make it with its own "
                "attn_type"
            )
    return _loaded(label, arrays, info, saved, model, new_attention, **choice)


def _loaded(
    label: str,
    arrays: Mapping[str, np.ndarray],
    info: FileInfo,
    saved: nn.Module | None,
    model: nn.Module,
    new_attention: bool,
    **choice: bool,
) -> tuple[dict[str, Any], Report]:
    """Weights in a model, that may have other attentions."""
    if new_attention and not _is_ours(info):
        arrays = fitting(label, arrays, entries(layout(model)))[0]
    fitted = partial(_fitted, label, arrays, info, saved, **choice)
    if not new_attention:
        return fitted(model)
    if saved is not None:
        source_model = model.clone(attn_type=saved.attn_type, attn_options=saved.attn_options)
    elif _is_ours(info):
        raise ValueError(
            f"{label} do not say which attentions they are of: save them (save_weights), and load the file"
        )
    else:
        source_model = with_attentions_of(label, arrays, model)
    variables, report = fitted(source_model)
    variables, made, left = inherit(variables, source_model, model)
    if not (made or left):
        return variables, report

    def names(row: Row) -> tuple[str, ...]:
        return (row.ours,) if _is_ours(info) else tuple(row.entries())

    new = [f"{name} ({streams})" if streams else name for row, streams in made for name in names(row)]
    unused = {name for row in left for name in names(row)}
    replaced = {name for row, _ in made for name in names(row)} | unused
    return variables, dataclasses.replace(
        report,
        matched=tuple(name for name in report.matched if name not in replaced),
        resampled={name: shapes for name, shapes in report.resampled.items() if name not in replaced},
        ignored=(*report.ignored, *sorted(unused)),
        made=(*report.made, *new),
        notes=(*report.notes, f"weights of {source_model.attn_type} attention, in a model of {model.attn_type}"),
    )


def _fitted(
    label: str,
    arrays: Mapping[str, np.ndarray],
    info: FileInfo,
    saved: nn.Module | None,
    model: nn.Module,
    *,
    new_head: bool,
    resample: bool,
) -> tuple[dict[str, Any], Report]:
    """Weights in a model of their own kind."""
    ours, source_rows, remarks, dropped = _is_ours(info), None, [], []
    if saved is not None:
        check_same_kind(label, info.metadata.get("model", "weights"), saved, model)
        source_rows = layout(saved) if saved.image_size != model.image_size else None

    rows, entered = layout(model), arrays
    wanted = {row.ours: row.shape for row in rows} if ours else entries(rows)
    if not ours:
        arrays, remarks, dropped = fitting(label, arrays, wanted)
    surplus = _left_out(model, ours)
    ignored = [name for name in arrays if is_buffer(name, wanted) or name in surplus]
    given = {name: array for name, array in arrays.items() if name not in ignored}
    given = given if ours else regrouped(rows, given)
    names = {row.ours: (row.ours,) if ours else tuple(row.entries()) for row in rows}
    added = parameters_added(model) if getattr(model, "features_only", False) else set()
    of_head = {row.ours for row in rows if any(row.path[: len(head)] == head for head in model.heads)}
    made_rows = {
        row.ours
        for row in rows
        if (new_head and row.ours in of_head) or (row.path in added and not set(names[row.ours]) & set(given))
    }
    made = {name for ours_name in made_rows for name in names[ours_name]}

    resampled: dict[str, tuple[Shape, Shape]] = {}
    for row in rows if resample else ():
        (name, *more) = names[row.ours]
        if more or name in made or name not in given or given[name].ndim != len(wanted[name]):
            continue
        array = given[name] if ours else row.as_ours(given[name])
        fitted = fit(row, array, rows, source_rows) if array.shape != row.shape or source_rows else None
        if fitted is not None:
            resampled[name] = (given[name].shape, wanted[name])
            given[name] = fitted if ours else row.to_torch(fitted)[name]

    given_shapes = {name: array.shape for name, array in given.items()}
    if given_shapes != wanted:
        head = {name for row in rows if row.ours in of_head for name in names[row.ours]}
        what, hint = f"{label} does not fit {describe(model)}", head_hint(head - made, given_shapes, wanted)
        if not ours:
            what += another_model(entered, model)
            strangers(what, given_shapes, wanted)
            hint += attention_hint(given_shapes, wanted, model) + foreign_hint(given_shapes, wanted)
        check_entries(what, given_shapes, wanted, made, hint)
    odd = [
        f"{name} ({given[name].dtype})"
        for row in rows
        for name in names[row.ours]
        if row.collection == "params" and name in given and not np.issubdtype(given[name].dtype, np.floating)
    ]
    if odd:
        raise ValueError(f"{label} holds weights that are not floating-point: {', '.join(odd)}")

    new = initial(model, made_rows)
    broken = not_finite({name: given[name] for name in wanted if name in given and name not in made})

    def filled(row: Row) -> np.ndarray:
        if row.ours in made_rows:
            return new[row.ours]
        return float32(given[row.ours] if ours else row.from_torch(given))

    report = Report(
        source=label + (f" ({info.key})" if info.key else ""),
        model=describe(model),
        matched=tuple(name for name in wanted if name not in made and name not in resampled),
        resampled=resampled,
        ignored=(*ignored, *sorted(name for name in made if name in given)),
        made=tuple(name for name in wanted if name in made),
        notes=(*info.notes, *dropped, *([broken] if broken else []), *other_options(info.extra, model)),
        remarks=(*info.remarks, *remarks),
    )
    return as_variables((row, filled(row)) for row in rows), report


def read_weights(
    source: str | os.PathLike | Mapping[str, Any], *, ema: bool = False, key: str | None = None
) -> tuple[str, dict[str, np.ndarray], FileInfo]:
    """(label for messages, name -> array, what the source says besides) of a file, a state dict, or variables."""
    if not isinstance(source, Mapping):
        return str(source), *read_torch(source, ema=ema, key=key)
    if is_tree(source):
        if ema or key:
            raise ValueError("ema=True and key= choose among the entries of a file; variables are taken as they are")
        variables = source if "params" in source else {"params": source}
        return "the variables", flat(variables, as_array), FileInfo("variables", metadata={"format": FORMAT})
    found = weights_in("the state dict", source, ema=ema, key=key)
    arrays, remarks = unwrapped("the state dict", {name: as_array(value) for name, value in found.entries.items()})
    info = FileInfo("state dict", found.key, notes=found.notes, remarks=(*remarks, *found.remarks()))
    return "the state dict", arrays, info


def saved_model(info: FileInfo) -> nn.Module:
    """The model that a file of ours was saved from, as its metadata describe it."""
    return create_model(info.metadata["model"], **json.loads(info.metadata.get("options", "{}")))


def _is_ours(info: FileInfo) -> bool:
    return info.metadata.get("format") == FORMAT


def _left_out(model: nn.Module, ours: bool) -> set[str]:
    """Names that a classification checkpoint holds and a model without head or without last levels has no place for.

    Of a segmenter without one, those of an auxiliary head.
    """
    if isinstance(model, Segmenter):
        return segmenter.left_out(model, ours)
    if model.num_classes and not model.features_only:
        return set()
    left_out, full = parameters_left_out(model), layout(classifier_of(model))
    rows = [row for row in full if row.path in left_out]
    return {row.ours for row in rows} if ours else set(entries(rows))
