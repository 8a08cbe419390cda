"""From a config to the task with a teacher, and the check that the two fit."""

import dataclasses
from typing import Any

import jax
import ml_collections
import numpy as np

from flatten_jax.attention.table import ATTENTIONS, attention_class
from flatten_jax.distill import rates
from flatten_jax.distill.tasks import Align, Distill, Features, Taught
from flatten_jax.distill.teacher import Teacher, check_blocks
from flatten_jax.training.tasks import Classify


def taught(plain: Classify, teacher: Teacher, distill: ml_collections.ConfigDict) -> tuple[Taught, Any]:
    """(the task of a config's section `distill`, `Training.rates`).

    Args:
        plain: the task without the teacher.

    Raises:
        ValueError: teacher and student do not fit for what is asked.
    """
    own = {field.name: getattr(plain, field.name) for field in dataclasses.fields(plain)} | {"teacher": teacher}
    student = plain.model
    if distill.kind == "align" or distill.weight:
        check_blocks(teacher.model, student)
    if distill.kind == "align":
        if distill.match == "map":
            _check_maps(teacher, student)
        learns = {"auto": "new" if distill.match == "map" else "qkv"}.get(distill.learns, distill.learns)
        chosen = rates.only_attentions(teacher.model, student, learns)
        if not any(np.any(rate) for rate in jax.tree.leaves(chosen)):
            raise ValueError(
                f"distill.kind='align' with distill.learns={distill.learns!r} has nothing to learn: "
                f"{student.attn_type} has no parameters that the teacher has not; use --config.distill.learns=qkv"
            )
        return Align(**own, match=distill.match, moving=rates.of_attentions(student)), chosen
    # Of features the head learns nothing, and must not decay.
    still, factors = student.heads if distill.kind == "features" else (), None
    if distill.new_factor != 1 or still:
        factors = rates.factors_for_new(teacher.model, student, distill.new_factor, still)
        factors = factors if any(np.any(np.asarray(rate) != 1) for rate in jax.tree.leaves(factors)) else None
    if distill.kind == "features":
        return Features(**own, measure=distill.features), factors
    answers = {key: distill[key] for key in ("kind", "alpha", "tau", "reduction", "weight")}
    return Distill(**own, **answers), factors


def notes_of(task: Classify) -> list[str]:
    """What a user may not expect of a run with a teacher."""
    if not isinstance(task, Taught):
        return []
    said = [f"the teacher: {task.teacher.said.splitlines()[0]}"]
    said += [f"resampled: {line.strip()}" for line in task.teacher.said.splitlines()[1:] if " -> " in line]
    if isinstance(task, Distill) and task.kind != "none" and not task.model.answer_head:
        said.append("the student has one head, which learns labels and answers: deit_*_distilled has one for each")
    return said


def _check_maps(teacher: Teacher, student: Any) -> None:
    for who, model in (("the teacher's", teacher.model), ("the student's", student)):
        names = sorted({name for stage in model.attentions() for name in stage})
        if without := [name for name in names if not attention_class(name).forms_map]:
            those = ", ".join(name for name, cls in ATTENTIONS.items() if cls.forms_map)
            raise ValueError(
                f"distill.match='map': {who} {', '.join(without)} forms no attention map that could be compared; those "
                f"that do: {those}; use --config.distill.match=output"
            )
