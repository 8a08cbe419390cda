"""A teacher's model with another attention, and what of its weights fits."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from flatten_jax.attention import attention_options
from flatten_jax.distill.teacher import architecture
from flatten_jax.models import create_model
from flatten_jax.models.backbone import Backbone
from flatten_jax.models.isotropic import Isotropic
from flatten_jax.models.registry import ALIASES, MODELS
from flatten_jax.trained.hub import describe_model
from flatten_jax.weights.convert import as_variables, flat
from flatten_jax.weights.fingerprint import pattern_of
from flatten_jax.weights.kind import describe
from flatten_jax.weights.layout import Row, layout
from flatten_jax.weights.new import inherit, initial
from flatten_jax.weights.report import Report

COPIES = {"all": ("attention", "mlp", "rest"), "mlp": ("mlp",), "attention": ("attention",), "none": ()}


def student_of(
    teacher: Backbone, attention: str, keep: Sequence[int] = (), options: Mapping[str, Any] | None = None
) -> tuple[str, dict[str, Any], Backbone]:
    """(name, options, model) of a teacher's model with another attention: model = create_model(name, **options).

    Args:
        attention: a name, or a pattern of names as `attn_type` has it.
        keep: numbers of the blocks, counted through the whole model from 0, that keep the teacher's attention.
        options: of `create_model`, where they differ from the teacher's; `name`, of the model, has to be of its family.

    Raises:
        ValueError: no such block; an attention or option that does not fit; another architecture than the teacher's.
    """
    options = dict(options or {})
    _check_same(teacher, options.pop("name", None), options)
    theirs = teacher.attentions()
    if not theirs:
        raise ValueError(f"{type(teacher).__name__} has no attention that could be exchanged")
    names = [list(stage) for stage in teacher.clone(attn_type=attention).attentions()]
    places = [(i, j) for i, stage in enumerate(theirs) for j in range(len(stage))]
    for number in keep:
        if not 0 <= number < len(places):
            raise ValueError(
                f"linearize.keep={number} is not a block of {type(teacher).__name__}, which has 0 ... {len(places) - 1}"
            )
        i, j = places[number]
        names[i][j] = theirs[i][j]
    attn_type = pattern_of([tuple(stage) for stage in names])
    name, own = describe_model(teacher)
    of_attentions = {option for stage in names for attention in stage for option in attention_options(attention)}
    idle = teacher.clone(attn_type=attn_type).idle_options()
    known = (of_attentions | type(teacher).__dataclass_fields__.keys()) - idle
    own = {key: value for key, value in own.items() if key in known} | options | {"attn_type": attn_type}
    return name, own, create_model(name, **own)


def _check_same(teacher: Backbone, name: str | None, options: Mapping[str, Any]) -> None:
    """ValueError where a config speaks of another architecture than the teacher's: both side by side."""
    if name is None:
        return
    entry = MODELS.get(ALIASES.get(name, name))
    if entry is None:
        create_model(name)  # which says what there is of a similar name
    fields = {key: value for key, value in options.items() if key in entry.family.__dataclass_fields__}
    asked = entry.family(**{**entry.settings, **fields})
    ours, theirs = architecture(asked), architecture(teacher)
    same = ("family", "blocks of each stage", "widths", "patch size")
    lines = "".join(f"\n  {key}: {theirs[key]} of the teacher, {ours[key]} of model.name={name!r}" for key in same)
    if any(ours[key] != theirs[key] for key in same):
        raise ValueError(f"the teacher is another model than the config says:{lines}\nLeave model.name out, or fit it.")


def part_of(row: Row) -> str:
    """What a variable is of: "attention" (with the norm before it), "mlp" (whatever else is in a block), "rest"."""
    if row.site is not None or row.letters:
        return "attention"
    if not row.block:
        return "rest"
    return "attention" if row.path[len(row.block)] in ("norm1", "proj") else "mlp"  # in CSwin they are the block's


def swap(
    variables: Mapping[str, Any], teacher: Backbone, student: Backbone, copy: str = "all", seed: int = 0
) -> tuple[dict[str, Any], Report]:
    """Variables of the student: of the teacher what fits and `copy` says, and new ones; and what became of each.

    A teacher's class token that the student has no place for is left out with its position.

    Args:
        variables: {"params": ...} of the teacher.
        copy: a key of COPIES.
        seed: of what is new.
    """
    inherited, partly, left = inherit(variables, teacher, student, seed)
    rows, values = layout(student), flat(inherited)
    new = {row.ours: streams for row, streams in partly}
    extra, positions = teacher.prefix - student.prefix, flat(variables).get("pos_embed")
    if "pos_embed" in new and extra > 0 and isinstance(student, Isotropic) and positions is not None:
        values["pos_embed"] = np.asarray(positions)[:, extra:]
        del new["pos_embed"]
    remade = [row.ours for row in rows if part_of(row) not in COPIES[copy]]
    values |= initial(student, remade, seed)
    made = {**{name: streams for name, streams in new.items() if name not in remade}, **dict.fromkeys(remade, "")}
    copied = [row for row in rows if row.ours not in made]
    numbers, all_numbers = (sum(int(np.prod(row.shape)) for row in some) for some in (copied, rows))
    report = Report(
        source=f"the teacher ({teacher.attn_type})",
        model=f"{describe(student)} ({student.attn_type})",
        matched=tuple(row.ours for row in copied),
        made=tuple(f"{name} ({streams})" if streams else name for name, streams in made.items()),
        ignored=tuple(sorted({row.ours for row in left} - {"pos_embed"})),
        remarks=(f"{numbers:,} of {all_numbers:,} numbers are the teacher's (copy={copy})",),
    )
    return as_variables((row, np.asarray(values[row.ours], np.float32)) for row in rows), report


def restored(
    variables: Mapping[str, Any], student: Backbone, of_teacher: Mapping[str, Any], blocks: set[tuple[str, ...]]
) -> dict[str, Any]:
    """Variables of a student in which some blocks have the teacher's attention again, with the teacher's weights of it.

    Args:
        variables: of the student before, without these.
        student: with them.
        of_teacher: the teacher's variables.
        blocks: paths of the blocks.
    """
    ours, theirs = flat(variables), flat(of_teacher)

    def value(row: Row) -> np.ndarray:
        back = row.block in blocks and part_of(row) == "attention"
        return np.asarray((theirs if back else ours)[row.ours], np.float32)

    return as_variables((row, value(row)) for row in layout(student))
