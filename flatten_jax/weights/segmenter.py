"""What is peculiar to weights of segmenters: those of a classifier have no head, and may have tables on the keys."""

import dataclasses
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import flax.linen as nn
import numpy as np

from flatten_jax.models.backbone import Backbone
from flatten_jax.segmentation.model import BACKBONE, Segmenter
from flatten_jax.weights.convert import as_variables, flat
from flatten_jax.weights.kind import describe
from flatten_jax.weights.layout import Row, entries, layout
from flatten_jax.weights.new import initial
from flatten_jax.weights.report import Report
from flatten_jax.weights.resample import POSITIONS

_TABLE = "positional_encoding"  # on the keys of focused attention


def has_head(names: Iterable[str]) -> bool:
    """Whether weights are of a segmenter, by our names or mmsegmentation's."""
    return any("decode_head" in re.split(r"[./]", name) for name in names)


def backbone_for(arrays: Mapping[str, np.ndarray], model: Segmenter) -> Backbone:
    """The segmenter's backbone, with a table on the keys if the weights have one, as those of a classifier do."""
    if not any(name.endswith(_TABLE) for name in arrays):
        return model.backbone
    options = dict(model.backbone.attn_options)
    return model.backbone.clone(attn_options=nn.FrozenDict({**options, "use_positional_encoding": True}))


def with_new_heads(
    model: Segmenter, part: Backbone, variables: Mapping[str, Any], report: Report
) -> tuple[dict[str, Any], Report]:
    """Variables of a segmenter from those of its backbone, and what became of them.

    Args:
        part: the backbone that the variables are of; it may have tables that that of the segmenter has not.
        variables: {"params": ...} of it.
        report: of loading them.
    """
    rows, given = layout(model), flat(variables)
    ours = {row.ours: given.get(_of_backbone(row)) for row in rows}
    made = [name for name, array in ours.items() if array is None]
    new = initial(model, made)
    counts = Counter(row.path[0] for row in rows if row.ours in new)
    wanted = {_of_backbone(row) for row in rows}
    left = {name for row in layout(part) if row.ours not in wanted for name in (row.ours, *row.entries())}
    filled = as_variables((row, new[row.ours] if ours[row.ours] is None else ours[row.ours]) for row in rows)
    return filled, dataclasses.replace(
        report,
        model=describe(model),
        matched=tuple(name for name in report.matched if name not in left),
        resampled={name: shapes for name, shapes in report.resampled.items() if name not in left},
        ignored=(*report.ignored, *sorted(left & {*report.matched, *report.resampled})),
        made=(*report.made, *(f"{module} ({count})" for module, count in counts.items())),
    )


def _of_backbone(row: Row) -> str | None:
    """Our name of a row in the variables of the backbone alone."""
    return row._replace(path=row.path[1:]).ours if row.path[0] == BACKBONE else None


def left_out(model: Segmenter, ours: bool) -> set[str]:
    """Names of an auxiliary head, which serves training alone, where the model has none."""
    if model.auxiliary:
        return set()
    rows = [row for row in layout(model.clone(auxiliary=True)) if row.path[0] == "auxiliary_head"]
    return {row.ours for row in rows} if ours else set(entries(rows))


def variables_at(model: Segmenter, variables: Mapping[str, Any], at: Segmenter) -> dict[str, Any]:
    """Variables of `model` made to fit `at`, the same for another image size; as they are where nothing depends on it.

    larger = model.at_size((512, 683))
    logits = larger.apply(variables_at(model, variables, larger), images)
    """
    from flatten_jax.weights.load import load_with_report  # which builds on this file

    if all(row == before or not _belongs(row) for row, before in zip(layout(at), layout(model), strict=True)):
        return dict(variables)
    return load_with_report(variables, at, saved=model)[0]


def _belongs(row: Row) -> bool:
    """Whether a variable belongs to a grid."""
    named = rf"{POSITIONS}|relative_position_bias_table"
    return row.sized is not None or re.fullmatch(named, row.path[-1]) is not None
