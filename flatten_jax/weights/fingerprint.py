"""Which attention the blocks of a state dict have: by the names of their entries, which are traced once.

Nothing is computed, and nothing traced that is deeper than a block or two a stage.
"""

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import groupby, product
from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp

from flatten_jax.attention import ATTENTIONS, Attention, attention_options, pattern
from flatten_jax.hosts import QKVAttention
from flatten_jax.models.backbone import Backbone
from flatten_jax.weights.layout import Row, entries, is_buffer, layout, torch_modules
from flatten_jax.weights.match import Shape
from flatten_jax.weights.streams import is_group

Entries = Mapping[str, tuple[Shape, Row]]  # PyTorch's name -> its shape, and the row that it belongs to


class Template(NamedTuple):
    """What PyTorch's entries of a model with one attention are called.

    Attributes:
        outer: those outside of blocks.
        blocks: of each stage, (what its blocks are called but for their number, "block1." say; the entries of a block,
            by their names within it).
    """

    outer: Entries
    blocks: tuple[tuple[str, Entries], ...]


def template(model: Backbone, attention: str, options: Mapping[str, Any]) -> Template:
    """That of `model` with one attention in all blocks.

    Args:
        options: the attention's, without tuples.

    Raises:
        ValueError: the model does not take this attention.
    """
    cls = ATTENTIONS[attention]
    # What looks at the block before cannot be the first one.
    attn_type, depth = (f"softmax*1+{attention}", 2) if cls.takes_before else (attention, 1)
    shallow = model.clone(
        **({"depths": (depth,) * len(model.depths)} if hasattr(model, "depths") else {"depth": depth}),
        attn_type=attn_type,
        attn_options=nn.FrozenDict(_own(attention, options)),
        remat=False,
        scan=False,
        features_only=False,
        out_indices=(),
        feature_norm=False,
    )
    return _template(shallow, cls)


@lru_cache(maxsize=512)
def _template(model: Backbone, cls: type[Attention]) -> Template:
    """Of a shallow model: the last block of each stage. The class is in the key, as a name may come to mean another."""
    outer, blocks = {}, {}
    for row in layout(model):
        prefix = torch_modules(row.block)
        for name, shape in row.entries().items():
            if not (row.block and name.startswith(prefix)):  # SkipAt's layers lie beside the original's blocks
                outer[name] = shape, row
            else:
                stage, number = prefix[:-1].rsplit(".", 1)
                blocks.setdefault(f"{stage}.", {}).setdefault(int(number), {})[name[len(prefix) :]] = shape, row
    return Template(outer, tuple((stage, of_stage[max(of_stage)]) for stage, of_stage in sorted(blocks.items())))


def _own(attention: str, options: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in options.items() if key in attention_options(attention)}


def template_of(model: Backbone, i: int, j: int) -> Template:
    """`template` of the attention that the model has in block j of stage i."""
    return template(model, model.attentions()[i][j], model.options_of(i, j))


def blocks_in(model: Backbone, given: Mapping[str, Shape]) -> list[dict[int, dict[str, Shape]]]:
    """The blocks of a state dict: of each stage, number -> the entries of the block, by their names within it.

    Args:
        model: of the family that the state dict is of.
        given: name -> shape.
    """
    stages = []
    for stage, _ in template_of(model, 0, 0).blocks:
        blocks: dict[int, dict[str, Shape]] = {}
        for name, shape in given.items():
            number, _, rest = name.removeprefix(stage).partition(".")
            if name.startswith(stage) and number.isdecimal() and rest:
                blocks.setdefault(int(number), {})[rest] = shape
        stages.append(dict(sorted(blocks.items())))
    return stages


class Found(NamedTuple):
    """An attention that has the names of a block, and the options that are not its own defaults (or the model's)."""

    attention: str
    options: Mapping[str, Any]


def attentions_in(model: Backbone, given: Mapping[str, Shape]) -> list[tuple[Found | None, ...]]:
    """The attention of every block of a state dict, stage by stage; None where no attention has these names.

    Where several have the same names, as all do that have no parameters, it is the model's own attention, else softmax,
    else the first one whose shapes fit too.

    Args:
        model: of the family and the architecture that the state dict is of, whatever its attentions.
        given: name -> shape.
    """
    own, known = model.attentions(), {}
    if not own:  # a model whose mixers cannot be exchanged
        return []
    stages = []
    for i, blocks in enumerate(blocks_in(model, given)):
        found = []
        for j, block in enumerate(blocks.values()):
            preferred = own[i][j] if j < len(own[i]) else own[i][-1]
            key = i, preferred, frozenset(block.items())
            if key not in known:
                known[key] = _attention(model, i, min(j, len(own[i]) - 1), block, preferred)
            found.append(known[key])
        stages.append(tuple(found))
    return stages


def _attention(model: Backbone, i: int, j: int, block: Mapping[str, Shape], preferred: str) -> Found | None:
    """The attention of a block (i, j) with these entries."""
    host, same_names = _of_host(model, i, j), None
    of_model = model.options_of(i, j)
    for name, changed in _choices(preferred, of_model):
        options = {**of_model, **changed}
        if not _may_be(name, options, block, host, getattr(model, "prefix", 0)):
            continue
        try:
            expected = template(model, name, options).blocks[i][1]
        except ValueError:  # the model does not take it
            continue
        if expected.keys() == {entry for entry in block if not is_buffer(entry, expected)}:
            if name == preferred or all(shape == block[entry] for entry, (shape, _) in expected.items()):
                return Found(name, changed)
            same_names = same_names or Found(name, changed)
    return same_names


def _choices(preferred: str, options: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """(attention, options that are switched over), in the order in which they are tried: as they are, then switched."""
    names = dict.fromkeys((preferred, "softmax", *ATTENTIONS))
    yield from ((name, {}) for name in names)
    for name in names:
        switches = {key: options.get(key, v) for key, v in attention_options(name).items() if isinstance(v, bool)}
        for chosen in sorted(product((False, True), repeat=len(switches)), key=sum):
            if any(chosen):
                yield name, {key: not switches[key] for key, turned in zip(switches, chosen, strict=True) if turned}


def _of_host(model: Backbone, i: int, j: int) -> set[str]:
    """Names in a block that are its host's, whatever the attention."""
    templates = [template_of(model, i, j)]
    with contextlib.suppress(ValueError):
        templates.append(template(model, "softmax", {}))
    blocks = [t.blocks[i][1].items() for t in templates]
    return {name for block in blocks for name, (_, row) in block if not (row.own or row.letters)}


def _may_be(name: str, options: Mapping[str, Any], block: Iterable[str], host: set[str], prefix: int) -> bool:
    """Whether a block can have an attention, judged by the attention's names alone: quicker than its `template`."""
    cls = ATTENTIONS[name]
    rows = _alone(cls, name, nn.FrozenDict(_own(name, options)), prefix)
    if rows is None:
        return True
    of_attention, of_streams = ({n for row in rows if row.own is own for n in row.entries()} for own in (True, False))

    def among(entry: str, names: set[str]) -> bool:
        return any(entry == name or entry.endswith(f".{name}") for name in names)

    if not all(any(among(entry, {name}) for entry in block) for name in of_attention):
        return False
    known = host | {entry for entry in block if is_buffer(entry)}
    rest = {entry for entry in block if entry not in known and not among(entry, of_attention)}
    groups = {entry.split(".")[-2] for entry in rest if not among(entry, of_streams)}
    return all(is_group(group, cls.streams) for group in groups)


@lru_cache(maxsize=512)
def _alone(cls: type[Attention], name: str, options: Mapping[str, Any], prefix: int) -> list[Row] | None:
    """Rows of the attention in the plain host; None where it cannot stand there."""
    try:
        return layout(
            QKVAttention(2, name, options), example=jnp.zeros((1, prefix + 64, 32)), grid=(8, 8), prefix=prefix
        )
    except ValueError:
        return None


def lookalikes(model: Backbone, i: int, j: int) -> list[str]:
    """Other attentions with the same names and shapes as the one in block j of stage i, as all without parameters."""
    own, prefix = model.attentions()[i][j], getattr(model, "prefix", 0)
    expected = _shapes(template_of(model, i, j).blocks[i][1])
    alone = {name: _alone(cls, name, nn.FrozenDict(), prefix) for name, cls in ATTENTIONS.items()}
    same: dict[bool, bool] = {}  # what is alike by itself differs by its host at most, which asks whether it has scores
    found = []
    for name, cls in ATTENTIONS.items():
        if name == own or None in (alone[name], alone[own]) or entries(alone[name]) != entries(alone[own]):
            continue
        if cls.takes_bias not in same:
            with contextlib.suppress(ValueError):
                same[cls.takes_bias] = _shapes(template(model, name, {}).blocks[i][1]) == expected
        if same.get(cls.takes_bias):
            found.append(name)
    return found


def _shapes(of_block: Entries) -> dict[str, Shape]:
    return {name: shape for name, (shape, _) in of_block.items()}


def pattern_of(attentions: Sequence[Sequence[str]]) -> str:
    """`attn_type` of the attentions of each stage's blocks: the inverse of `attention.pattern`."""
    stages, depths = [_stage_of(names) for names in attentions], [len(names) for names in attentions]
    # Of attentions in turn, a shallow stage may show less than a deep one.
    whole = [entry for entry in stages if "/" in entry and pattern(entry, depths) == list(attentions)]
    return stages[0] if len(set(stages)) == 1 else whole[0] if whole else ",".join(stages)


def _stage_of(names: Sequence[str]) -> str:
    runs = [(name, len(list(group))) for name, group in groupby(names)]
    for period in range(2, len(runs)):
        if len(runs) == len(names) and all(name == names[i % period] for i, name in enumerate(names)):
            return "/".join(names[:period])
    return "+".join([*(f"{name}*{count}" for name, count in runs[:-1]), runs[-1][0]])
