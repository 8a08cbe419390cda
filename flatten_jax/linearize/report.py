"""How near each attention of a student comes to its teacher's, and what makes it hard."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from flatten_jax.analysis.capture import capture
from flatten_jax.analysis.layer import Layer
from flatten_jax.analysis.matrices import entropy
from flatten_jax.attention.contract import heads
from flatten_jax.attention.softmax import softmax_map
from flatten_jax.distill.tasks import Taught
from flatten_jax.distill.teacher import attended
from flatten_jax.models.stack import GIVEN, SEEN
from flatten_jax.weights.layout import attention_of_blocks

PICTURES = 16


def blocks(task: Taught, of_teacher: Mapping[str, Any], of_student: Mapping[str, Any], images: jax.Array) -> list[dict]:
    """Of each block, on the teacher's inputs, in order:

    - block, attention: its number and the student's attention.
    - error: the squared error of what its attention gives after the projection, over the variance of the teacher's.
    - entropy: of the teacher's rows in nats, a mean; None where it is not softmax. The sharper, the harder.
    - key_shift: |mean k| / mean |k| of the teacher's keys, over tokens, of a head. Near 1, keys are nearly the same.
    - dead_rows: share of the student's queries and keys, of a head, with no positive entry: a map made of relu gives
      zeros for them.

    Args:
        task: knows both models.
        images: (B, height, width, 3), normalised for the student.
    """
    teacher, student = task.teacher.model, task.model
    seen = task.teacher.sees(images, task.mean, task.std)
    theirs = jax.jit(lambda v, x: teacher.apply(v, x, mutable=[SEEN])[1][SEEN])(of_teacher, seen)
    given = {path: jax.tree.map(task.ours, leaf) for path, leaf in flatten_dict(theirs).items() if path[-1] == "given"}
    with_inputs = {**of_student, GIVEN: unflatten_dict(given)}
    ours = attended(jax.jit(lambda v, x: student.apply(v, x, mutable=[SEEN])[1][SEEN])(with_inputs, images))
    expected = {path: np.asarray(task.ours(x), np.float64) for path, x in attended(theirs).items()}
    layers = _by_block(capture(teacher, of_teacher, seen)), _by_block(capture(student, with_inputs, images))
    rows = []
    for number, (path, attention) in enumerate(attention_of_blocks(student).items()):
        apart = np.asarray(ours[path], np.float64) - expected[path]
        before, after = (of.get(number, []) for of in layers)
        rows.append(
            {
                "block": number,
                "attention": attention,
                "error": float((apart**2).mean() / expected[path].var()),
                "entropy": _mean(_entropy(layer) for layer in before),
                "key_shift": _mean(_key_shift(layer) for layer in before),
                "dead_rows": _mean(_dead_rows(layer) for layer in after),
            }
        )
    return rows


def words(rows: list[dict]) -> str:
    """The same as a table for people."""
    lines = ["  block  attention       error / variance   teacher's entropy   key shift   dead rows"]
    for row in rows:
        cells = [f"{row[key]:.3f}" if row[key] is not None else "-" for key in ("entropy", "key_shift", "dead_rows")]
        lines.append(
            f"  {row['block']:5}  {row['attention']:14}  {row['error']:16.4f}   {cells[0]:>17}   {cells[1]:>9}   "
            f"{cells[2]:>9}"
        )
    return "\n".join(lines)


def _by_block(layers: list[Layer]) -> dict[int, list[Layer]]:
    found: dict[int, list[Layer]] = {}
    for layer in layers:
        found.setdefault(layer.block, []).append(layer)
    return found


def _heads(layer: Layer, letter: str) -> np.ndarray | None:
    """(W, N, h, d)."""
    stream = layer.streams.get(letter)
    return None if stream is None or stream.shape[2] % layer.num_heads else np.asarray(heads(stream, layer.num_heads))


def _entropy(layer: Layer) -> float | None:
    if layer.kind != "softmax":
        return None
    return float(entropy(softmax_map(_heads(layer, "q"), _heads(layer, "k"), layer.call.site.bias)).mean())


def _key_shift(layer: Layer) -> float | None:
    keys = _heads(layer, "k")
    if keys is None:
        return None
    lengths = np.linalg.norm(keys, axis=-1).mean(axis=1)
    return float((np.linalg.norm(keys.mean(axis=1), axis=-1) / np.maximum(lengths, 1e-12)).mean())


def _dead_rows(layer: Layer) -> float | None:
    return _mean(None if x is None else float((x <= 0).all(axis=-1).mean()) for x in (_heads(layer, c) for c in "qk"))


def _mean(values: Any) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None
