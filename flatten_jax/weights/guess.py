"""Which model a PyTorch state dict belongs to, from its names and shapes."""

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from typing import Any, NamedTuple

import flax.linen as nn
import numpy as np

from flatten_jax.attention import attention_options
from flatten_jax.models.backbone import Backbone
from flatten_jax.models.registry import MODELS
from flatten_jax.weights.fingerprint import attentions_in, lookalikes, pattern_of, template_of
from flatten_jax.weights.layout import Row, is_buffer, layout
from flatten_jax.weights.match import Shape
from flatten_jax.weights.resample import POSITIONS

# Where the configs in the originals' files have options that no shape shows.
IN_CONFIG = {"focusing_factor": ("MODEL", "LA", "FOCUSING_FACTOR"), "alpha": ("MODEL", "LA", "ALPHA")}
_NOT_OF_WEIGHTS = {"remat", "scan", "features_only", "feature_norm"}


class Guess(NamedTuple):
    """A model that has the names and shapes of a state dict.

    Attributes:
        name, options: for `create_model`.
        notes: what the state dict leaves open.
    """

    name: str
    options: dict[str, Any]
    notes: tuple[str, ...] = ()


def guess_model(state_dict: Mapping[str, np.ndarray]) -> tuple[str, dict[str, Any]]:
    """(name, options) of `guess`."""
    return guess(state_dict)[:2]


def guess(state_dict: Mapping[str, np.ndarray]) -> Guess:
    """The model that has exactly these names and shapes.

    Where several do, the one that needs the fewest options, and of these the one that is listed first in its family's
    file, so a host before what was made of it; a note names other models that need none. The attentions are known by
    the names of their parameters. Where these are the same, as of all that have none, the model's own or else softmax
    is taken, and a note says so. Of the options num_classes and image_size are found, windows, and numbers and switches
    of the attentions. What leaves no trace in a shape, such as the focusing factor, stays at its default.

    Args:
        state_dict: PyTorch's name -> array, or anything that has a shape.

    Raises:
        ValueError: no model has; it names the nearest one and what differs.
    """
    given = {name: tuple(array.shape) for name, array in state_dict.items()}
    listed, found = {name: i for i, name in enumerate(MODELS)}, []
    for names in _candidates(given):
        # Registered models as they are come first: they are quick to compare, and need the fewest options.
        tried = [_as_registered(name, given) for name in names]
        alike = [t for t in tried if not t.differs]
        found += tried if alike else _fitted(tried, given, listed)
        best = min(found, key=lambda t: (len(t.differs), len(t.options), listed[t.name]))
        if not best.differs:
            break
    else:
        text = f" with {', '.join(f'{k}={json.dumps(v)}' for k, v in best.options.items())}" if best.options else ""
        raise ValueError(f"no model has these shapes; the nearest is {best.name}{text}: {best.differs}")
    others = sorted(t.name for t in alike if t.name != best.name)
    notes = (f"{best.name} is taken, and others have the same names and shapes: {', '.join(others)}",) if others else ()
    return Guess(best.name, best.options, (*notes, *_notes(_build(best.name, best.options))))


def registered(state_dict: Mapping[str, np.ndarray]) -> tuple[str, dict[str, Any]] | None:
    """As `guess_model`, of models as they are registered but for the number of classes: quick, and None for others."""
    given, listed = {name: tuple(array.shape) for name, array in state_dict.items()}, list(MODELS)
    for names in _candidates(given, near=False):
        alike = [t for t in (_as_registered(name, given) for name in names) if not t.differs]
        if alike:
            return min(alike, key=lambda t: (len(t.options), listed.index(t.name)))[:2]
    return None


def _candidates(given: Mapping[str, Shape], near: bool = True) -> Iterator[list[str]]:
    """Models that the state dict may be of: of the family that it has the hallmark of, then hosts of its widths, or
    else the nearest."""
    marked = [name for name, entry in MODELS.items() if entry.family.hallmark in given]
    if marked:
        yield marked
    depths, widths = _architecture(given)
    if depths:
        hosts = [name for name, entry in MODELS.items() if not entry.family.hallmark]
        alike = [name for name in hosts if _settings(name) == (depths, widths)]
        yield alike or (_nearest(hosts, depths, widths) if near else [])
    elif not marked:
        raise ValueError("these are no weights of a vision transformer of this library: no block is among the names")


def told_by_config(extra: Any) -> dict[str, Any]:
    """Options that the config (a CfgNode) in a file of the originals tells, and no shape: option -> value.

    Args:
        extra: what a file holds beside the weights.
    """
    told = {}
    for option, keys in IN_CONFIG.items():
        value = extra
        for key in ("config", *keys):
            value = value.get(key) if isinstance(value, Mapping) else None
        if isinstance(value, (int, float)):
            told[option] = value
    return told


def _architecture(given: Mapping[str, Shape]) -> tuple[list[int], list[int]]:
    """Number of blocks and width of each stage."""
    stages: dict[str, dict[int, int]] = {}
    for name, shape in given.items():
        if found := re.fullmatch(r"(.*?)(\d+)\.norm1\.weight", name):
            stages.setdefault(found[1], {})[int(found[2])] = shape[0]
    blocks = [blocks for _, blocks in sorted(stages.items())]
    return [len(widths) for widths in blocks], [next(iter(widths.values())) for widths in blocks]


def _settings(name: str) -> tuple[list[int], list[int]]:
    """The same of a registered host."""
    model = _build(name, {})
    return [len(names) for names in model.attentions()], list(model.widths())


def _nearest(hosts: list[str], depths: list[int], widths: list[int]) -> list[str]:
    """Models of the same number of stages that are closest in depth and width."""

    def distance(name: str) -> float:
        theirs = _settings(name)
        if {len(theirs[0]), len(theirs[1])} != {len(depths)}:
            return math.inf
        pairs = zip((*theirs[0], *theirs[1]), (*depths, *widths), strict=True)
        return sum(abs(math.log(max(1, ours) / max(1, n))) for ours, n in pairs)

    return sorted(hosts, key=distance)[:2]


def _build(name: str, options: Mapping[str, Any]) -> Backbone:
    """As `create_model`, which also traces the whole model to see whether all fits."""
    family, settings = MODELS[name].family, MODELS[name].settings
    fields = family.__dataclass_fields__.keys()
    of_attentions = {k: v for k, v in options.items() if k not in fields}
    return family(
        **{
            **settings,
            **{k: v for k, v in options.items() if k in fields},
            "attn_options": nn.FrozenDict({**settings.get("attn_options", {}), **of_attentions}),
        }
    )


class _Misshapen(NamedTuple):
    """An entry with another shape than a model's."""

    name: str
    given: Shape
    wanted: Shape
    row: Row
    stage: int  # -1 outside of blocks
    inside: str  # its name in the block, "" outside


class _Differences(NamedTuple):
    """What differs between a state dict and a model."""

    missing: list[str]
    unexpected: list[str]
    misshapen: list[_Misshapen]
    refused: str = ""

    def __len__(self) -> int:
        return len(self.missing) + len(self.unexpected) + len(self.misshapen) + bool(self.refused) * 10**6

    def __str__(self) -> str:
        said = [self.refused] if self.refused else []
        said += [f"{name} is missing" for name in self.missing] + [f"{name} is unexpected" for name in self.unexpected]
        said += [f"{m.name} is {m.given} instead of {m.wanted}" for m in self.misshapen]
        return "; ".join(said[:6]) + (f", and {len(said) - 6} more" if len(said) > 6 else "")


def _compare(model: Backbone, given: Mapping[str, Shape]) -> _Differences:
    try:
        if model.hallmark:  # an original as a whole
            rows = layout(model)
            return _differences(
                {name: (shape, row, -1, "") for row in rows for name, shape in row.entries().items()}, given
            )
        wanted = {name: (*entry, -1, "") for name, entry in template_of(model, 0, 0).outer.items()}
        for i, names in enumerate(model.attentions()):
            for j in range(len(names)):
                prefix, entries = template_of(model, i, j).blocks[i]
                wanted |= {f"{prefix}{j}.{name}": (*entry, i, name) for name, entry in entries.items()}
    except ValueError as error:  # a pattern or size that this family does not have
        return _Differences([], [], [], str(error))
    return _differences(wanted, given)


def _differences(wanted: Mapping[str, tuple], given: Mapping[str, Shape]) -> _Differences:
    """Args: wanted: name -> (shape, row, stage, name in the block)."""
    return _Differences(
        [name for name in wanted if name not in given],
        [name for name in given if name not in wanted and not is_buffer(name, wanted)],
        [
            _Misshapen(name, given[name], shape, *where)
            for name, (shape, *where) in wanted.items()
            if name in given and given[name] != shape
        ],
    )


class _Tried(NamedTuple):
    name: str
    options: dict[str, Any]
    differs: _Differences


def _as_registered(name: str, given: Mapping[str, Shape]) -> _Tried:
    """A model with another number of classes at most."""
    model = _build(name, {})
    found = _compare(model, given)
    heads = [m.given[0] for m in found.misshapen if m.row.path[:-1] in model.heads and m.row.path[-1] == "bias"]
    headless = {".".join((*path, "bias")) for path in model.heads} & set(found.missing)
    if not (heads or headless):
        return _Tried(name, {}, found)
    options = {"num_classes": heads[0] if heads else 0}
    return _Tried(name, options, _compare(_build(name, options), given))


def _fitted(tried: Sequence[_Tried], given: Mapping[str, Shape], listed: Mapping[str, int]) -> Iterator[_Tried]:
    """Each with options, the nearest first; without those that cannot be better than what was found before them."""
    best = math.inf, 0
    for t in sorted(tried, key=lambda t: len(t.differs)):
        if (len(t.options) + 1, listed[t.name]) < best:
            t = _with_options(t, given)
            best = best if t.differs else min(best, (len(t.options), listed[t.name]))
            yield t


def _with_options(tried: _Tried, given: Mapping[str, Shape]) -> _Tried:
    """The same with the attentions that the names tell, and with options that bring the shapes nearer, one by one."""
    name, options = tried.name, dict(tried.options)
    model = _build(name, options)
    own = model.attentions()
    if not (tried.differs.refused or model.hallmark):
        found = attentions_in(model, given)
        names = [tuple(a.attention if a else "" for a in stage) for stage in found]
        if names != own and all(all(stage) for stage in names):
            options["attn_type"] = pattern_of(names)
        options |= {key: value for stage in found for a in stage if a for key, value in a.options.items()}
        tried = _Tried(name, options, _compare(_build(name, options), given))
    while tried.differs:
        changes = list(_changes(_build(name, tried.options), tried.differs))
        trials = [_Tried(name, {**tried.options, **change}, None) for change in changes]
        trials = [t._replace(differs=_compare(_build(name, t.options), given)) for t in trials]
        best = min(trials, key=lambda t: len(t.differs), default=tried)
        if len(best.differs) >= len(tried.differs):
            break
        tried = best
    return tried


def _changes(model: Backbone, differs: _Differences) -> Iterator[dict[str, Any]]:
    """Options that would explain what differs: switches of the family, image size and windows, the attentions' own."""
    if differs.missing or differs.unexpected:
        for field, value in vars(model).items():
            if isinstance(value, bool) and field not in _NOT_OF_WEIGHTS and field in type(model).__dataclass_fields__:
                yield {field: not value}
    changes: dict[str, dict[str, Any]] = {}
    for m in differs.misshapen:
        for change in (*_sizes(model, m), *_numbers(model, m, differs.misshapen)):
            changes.setdefault(repr(change), change)
    yield from changes.values()


def _sizes(model: Backbone, m: _Misshapen) -> Iterator[dict[str, Any]]:
    """Another image size, or window (Swin), that would explain the length of a position encoding or bias table."""
    if len(m.given) != len(m.wanted):
        return
    leaf, prefix, power = m.row.path[-1], 0, 0.5
    if m.row.sized:
        axis = m.row.axes[m.row.sized.axis]
        power = 0.5 if m.row.sized.along in ("tokens", "fixed") else 1
    elif re.fullmatch(POSITIONS, leaf):
        axis, prefix = 1, getattr(model, "prefix", 0)
    elif leaf == "relative_position_bias_table":
        axis = 0
    else:
        return
    factor = ((m.given[axis] - prefix) / (m.wanted[axis] - prefix)) ** power
    yield {"image_size": tuple(round(side * factor) for side in model.image_size)}
    side = math.isqrt(m.given[axis])
    windows = (
        {"softmax_window_size": (side + 1) // 2} if leaf == "relative_position_bias_table" else {"window_size": side}
    )
    yield from ({key: value} for key, value in windows.items() if hasattr(model, key) and m.inside)


def _numbers(model: Backbone, m: _Misshapen, misshapen: Sequence[_Misshapen]) -> Iterator[dict[str, Any]]:
    """Whole numbers among an attention's options that would explain a shape, in all stages or in each its own."""
    if not m.inside or len(m.given) != len(m.wanted):
        return
    alike = {other.stage: other for other in misshapen if other.inside == m.inside}
    for option in sorted({option for name in model.attentions()[m.stage] for option in _whole_numbers(name)}):
        now = {i: _option(model, i, option) for i in range(len(model.attentions()))}
        for axis, power in product(range(len(m.given)), (1, 0.5)):
            values = {i: now[i] * (a.given[axis] / a.wanted[axis]) ** power for i, a in alike.items()}
            if any(not math.isclose(value, round(value)) or round(value) == now[i] for i, value in values.items()):
                continue
            values = {i: round(value) for i, value in values.items()}
            if len(set(values.values())) == 1:
                yield {option: values[m.stage]}
            if len(now) == model.attn_entries > 1:
                yield {option: tuple((now | values).values())}


def _whole_numbers(attention: str) -> list[str]:
    return [option for option, default in attention_options(attention).items() if type(default) is int]


def _option(model: Backbone, stage: int, option: str) -> int:
    defaults = [attention_options(name).get(option) for name in model.attentions()[stage]]
    return model.options_of(stage, 0).get(option, next((value for value in defaults if value is not None), 0))


def _notes(model: Backbone) -> tuple[str, ...]:
    """What of the attentions the names leave open."""
    open_: dict[str, list[str]] = {}
    for i, names in enumerate(model.attentions()):
        for name in set(names):
            others = lookalikes(model, i, names.index(name))
            open_[name] = [other for other in open_.get(name, others) if other in others]
    return tuple(
        f"{name} is taken for attention, and others have the same names and shapes: {', '.join(others)} (attn_type)"
        for name, others in sorted(open_.items())
        if others
    )
