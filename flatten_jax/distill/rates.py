"""Which parameters of a student learn, and how fast: by whether its teacher has them."""

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from flax.traverse_util import unflatten_dict

from flatten_jax.models.backbone import Backbone
from flatten_jax.weights.layout import Row, attention_of_blocks, layout
from flatten_jax.weights.new import Key, missing
from flatten_jax.weights.resample import POSITIONS
from flatten_jax.weights.streams import pieces


def factors_for_new(
    teacher: Backbone, student: Backbone, factor: float, still: Sequence[tuple[str, ...]] = ()
) -> dict[str, Any]:
    """The factor of the learning rate of every parameter: `factor` for what the teacher has not, else 1.

    Of a projection some streams may be new: then it is an array along the last axis.

    Args:
        still: paths of modules that do not learn.
    """
    rows, new = _compared(teacher, student)

    def of(row: Row) -> Any:
        if any(row.path[: len(path)] == path for path in still):
            return 0.0
        return _of_pieces(row, new[row.ours], factor, 1.0)

    return _tree(rows, of)


def only_attentions(teacher: Backbone, student: Backbone, learns: str) -> dict[str, Any]:
    """The same for learning the attentions alone: 1 for what learns, 0 for all that stays.

    In blocks where both have the same attention all stays, unless that is so in all blocks.

    Args:
        learns: "new", what the teacher has not; "qkv", that and the projections to queries, keys and values; "mixer",
            all of the attentions.
    """
    rows, new = _compared(teacher, student)
    ours, theirs = (attention_of_blocks(model) for model in (student, teacher))
    other = {block for block, name in ours.items() if theirs.get(block) != name} or set(ours)

    def factor(row: Row) -> Any:
        if row.block not in other:
            return 0.0
        if (learns == "qkv" and row.letters) or (learns == "mixer" and (row.site is not None or row.letters)):
            return 1.0
        return _of_pieces(row, new[row.ours], 1.0, 0.0)

    return _tree(rows, factor)


def of_attentions(student: Backbone) -> frozenset[tuple[str, ...]]:
    """(collection, path) of the variables of attentions that are no parameters, such as running statistics."""
    rows = layout(student)
    return frozenset((row.collection, *row.path) for row in rows if row.site is not None and row.collection != "params")


def _compared(teacher: Backbone, student: Backbone) -> tuple[list[Row], dict[str, list[Key]]]:
    rows = layout(student)
    new = missing(rows, layout(teacher))
    # Positions of another number of tokens are not new but cut or resampled.
    return rows, {name: keys if not re.fullmatch(POSITIONS, name) else [] for name, keys in new.items()}


def _of_pieces(row: Row, new: Sequence[Key], if_new: float, else_: float) -> Any:
    parts = pieces(row, np.ones(row.shape[-1:] or (1,), np.float32)) if row.letters else {}
    if not parts or len(new) in (0, len(parts)):
        return if_new if new else else_
    return np.concatenate([part * np.float32(if_new if key in new else else_) for key, part in parts.items()])


def _tree(rows: Sequence[Row], factor: Any) -> dict[str, Any]:
    return unflatten_dict({row.path: factor(row) for row in rows if row.collection == "params"})
