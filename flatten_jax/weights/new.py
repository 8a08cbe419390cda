"""What a file of weights does not have, made new by the model's own initial values; and weights of other attentions."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from flatten_jax.models import dummy_images
from flatten_jax.runtime import unoptimised
from flatten_jax.weights.convert import as_variables, flat
from flatten_jax.weights.layout import Row, layout
from flatten_jax.weights.match import Shape
from flatten_jax.weights.streams import pieces

_SEED = 0
_STREAM = 0x6E6577  # of random numbers; a run's first variables are of the seed itself

Key = tuple[str, ...]  # of `pieces`


def initial(model: nn.Module, names: Iterable[str], seed: int = _SEED) -> dict[str, np.ndarray]:
    """The model's own initial values of some rows, by `Row.ours`, the same for a seed.

    They are others than those of a run with that seed: the weights beside them may have begun with those, and would
    fit them still, as if they knew something. What else `init` computes is cut away by the compiler.
    """
    names = sorted(names)
    if not names:
        return {}

    def chosen(key: jax.Array) -> dict[str, jax.Array]:
        leaves = flat(model.init(key, dummy_images(model)), lambda leaf: leaf)
        return {name: leaves[name] for name in names}

    key = jax.random.fold_in(jax.random.key(seed), _STREAM)
    return {name: np.asarray(x) for name, x in jax.jit(chosen, compiler_options=unoptimised())(key).items()}


def inherit(
    variables: Mapping[str, Any], source: nn.Module, model: nn.Module, seed: int = _SEED
) -> tuple[dict[str, Any], list[tuple[Row, str]], list[Row]]:
    """Variables of `model` from those of a model that has other attentions, and else is the same.

    Inherited are the projections, stream by stream, and all that blocks have beside an attention's own parameters;
    these too in blocks that have the same attention in both. The rest is made new.

    Args:
        variables: {"params": ...} of `source`.
        seed: of what is made new.

    Returns:
        (variables of `model`; the rows that are new, each with its new streams if only some are; the rows of `source`
        that the model has no use for).
    """
    rows, old_rows, old = layout(model), layout(source), flat(variables)
    new = missing(rows, old_rows)
    old_rows_of = {key: row for row in old_rows for key in pieces(row, old[row.ours])}
    have = {key: piece for row in old_rows for key, piece in pieces(row, old[row.ours]).items()}
    abstract = {row.ours: pieces(row, np.broadcast_to(np.float32(0), row.shape)) for row in rows}
    fresh = initial(model, (name for name, keys in new.items() if keys), seed)
    arrays, used = [], set()
    for row in rows:
        made = pieces(row, fresh[row.ours]) if new[row.ours] else {}
        taken = abstract[row.ours].keys() - set(new[row.ours])
        used |= taken
        parts = [have[key] if key in taken else made[key] for key in abstract[row.ours]]
        arrays.append((row, np.concatenate(parts, axis=-1) if row.letters else parts[0]))
    partly = [
        (row, "".join(key[-2] for key in new[row.ours]) if len(new[row.ours]) < len(abstract[row.ours]) else "")
        for row in rows
        if new[row.ours]
    ]
    left = {row.ours: row for key, row in old_rows_of.items() if key not in used}
    return as_variables(arrays), partly, list(left.values())


def missing(rows: Sequence[Row], old_rows: Sequence[Row]) -> dict[str, list[Key]]:
    """What weights of another model lack: `Row.ours` -> those of its `pieces` that they have not.

    An attention's own parameters they have in blocks that have the same attention in both.

    Args:
        rows: of the model.
        old_rows: of the one that the weights are of.
    """
    same = {block for block, names in _blocks(rows).items() if names == _blocks(old_rows).get(block)}

    def shapes(row: Row) -> dict[Key, Shape]:
        return {key: piece.shape for key, piece in pieces(row, np.broadcast_to(np.float32(0), row.shape)).items()}

    have = {key: s for row in old_rows if not row.own or row.block in same for key, s in shapes(row).items()}
    return {row.ours: [key for key, shape in shapes(row).items() if have.get(key) != shape] for row in rows}


def _blocks(rows: Iterable[Row]) -> dict[tuple[str, ...], set[str]]:
    """The names of each block: equal ones have the same attention."""
    blocks: dict[tuple[str, ...], set[str]] = {}
    for row in rows:
        blocks.setdefault(row.block, set()).add(row.ours)
    return blocks
