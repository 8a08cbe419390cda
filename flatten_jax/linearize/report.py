"""How near each attention of a student comes to its teacher's, and what makes it hard."""

from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from flatten_jax.attention import Attention, Site
from flatten_jax.attention.contract import heads
from flatten_jax.attention.core import wide
from flatten_jax.attention.softmax import Softmax, softmax_map
from flatten_jax.distill.tasks import Taught
from flatten_jax.distill.teacher import attended
from flatten_jax.models.stack import GIVEN, SEEN
from flatten_jax.weights.layout import Path, attention_of_blocks, block_of

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
    theirs, before = _looked(task.teacher.model, of_teacher, task.teacher.sees(images, task.mean, task.std))
    given = {path: jax.tree.map(task.ours, leaf) for path, leaf in flatten_dict(theirs).items() if path[-1] == "given"}
    ours, after = _looked(task.model, {**of_student, GIVEN: unflatten_dict(given)}, images)
    gave, rows = {path: np.asarray(task.ours(x), np.float64) for path, x in attended(theirs).items()}, []
    for number, (path, attention) in enumerate(attention_of_blocks(task.model).items()):
        apart = np.asarray(attended(ours)[path], np.float64) - gave[path]
        rows.append(
            {
                "block": number,
                "attention": attention,
                "error": float((apart**2).mean() / gave[path].var()),
                "entropy": _mean(before[path], "entropy"),
                "key_shift": _mean(before[path], "key_shift"),
                "dead_rows": _mean(after[path], "dead_rows"),
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


def _looked(model: nn.Module, variables: Mapping[str, Any], images: jax.Array) -> tuple[Any, dict[Path, list[dict]]]:
    """(the collection SEEN, what is measured of the attentions of each block) of one forward pass."""

    def look(variables: Mapping[str, Any], images: jax.Array) -> tuple[Any, dict[Path, list[dict]]]:
        found: dict[Path, list[dict]] = {}

        def intercept(call: Callable, args: tuple, kwargs: dict, context: Any) -> Any:
            module = context.module
            if context.method_name == "__call__" and isinstance(module, Attention) and isinstance(args[1], Site):
                found.setdefault(block_of(module.scope.path), []).append(_measured(module, *args[1:]))
            return call(*args, **kwargs)

        # What recomputed and looped blocks see does not leave them.
        with nn.intercept_methods(intercept):
            _, seen = model.clone(remat=False, scan=False).apply(variables, images, mutable=[SEEN])
        return seen[SEEN], [found[block] for block in sorted(found)]

    blocks: list[Path] = sorted(attention_of_blocks(model))
    seen, measured = jax.jit(look)(variables, images)
    return seen, dict(zip(blocks, jax.device_get(measured), strict=True))


def _measured(attention: Attention, site: Site, *streams: jax.Array) -> dict[str, jax.Array]:
    """Those of the figures that its queries and keys tell, each ()."""
    streams = dict(zip(attention.streams, streams, strict=True))
    q, k = (
        None if x is None or x.shape[2] % attention.num_heads else wide(heads(x, attention.num_heads))
        for x in (streams.get("q"), streams.get("k"))
    )
    measured = {}
    if k is not None:
        lengths = jnp.linalg.norm(k, axis=-1).mean(axis=1)
        measured["key_shift"] = (jnp.linalg.norm(k.mean(axis=1), axis=-1) / jnp.maximum(lengths, 1e-12)).mean()
    if known := [x for x in (q, k) if x is not None]:
        measured["dead_rows"] = sum((x <= 0).all(axis=-1).mean() for x in known) / len(known)
    if isinstance(attention, Softmax):
        weights = softmax_map(q, k, site.bias)
        measured["entropy"] = -(weights * jnp.log(jnp.where(weights > 0, weights, 1))).sum(axis=-1).mean()
    return measured


def _mean(measured: list[dict], name: str) -> float | None:
    known = [float(of[name]) for of in measured if name in of]
    return float(np.mean(known)) if known else None
