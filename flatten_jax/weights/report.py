"""What became of each entry of a file of weights, for people."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from flatten_jax.weights.layout import is_buffer
from flatten_jax.weights.match import Shape


@dataclass(frozen=True)
class Report:
    """What became of each entry of a file; str() is the text for people.

    Attributes:
        source, model: what was loaded into what.
        matched: names that were taken as they are.
        resampled: name -> (shape in the file, shape in the model).
        ignored: names that no model needs, or not this one.
        made: names that the file need not have: made new. Of a projection some streams may be, "attn.qkvo.weight (o)".
        notes: further lines, of what its reader may not expect.
        remarks: further lines, of what was left out or renamed and changes nothing.
    """

    source: str
    model: str
    matched: tuple[str, ...]
    resampled: Mapping[str, tuple[Shape, Shape]] = field(default_factory=dict)
    ignored: tuple[str, ...] = ()
    made: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()

    def __str__(self) -> str:
        lines = [f"{self.source} -> {self.model}", f"  matched {len(self.matched)}"]
        if self.resampled:
            changes = (f"{_leaf(name)} {old} -> {new}" for name, (old, new) in self.resampled.items())
            lines += [f"  resampled {len(self.resampled)}", *(f"    {change}" for change in _counted(changes))]
        if self.ignored:
            kinds = (_leaf(name) if is_buffer(name) else name for name in self.ignored)
            lines.append(f"  ignored {len(self.ignored)}: {', '.join(_of_blocks(kinds))}")
        if self.made:
            lines.append(f"  made new {len(self.made)}: {', '.join(_of_blocks(self.made))}")
        return "\n".join([*lines, *(f"  {remark}" for remark in self.remarks), *(f"  note: {n}" for n in self.notes)])


def _leaf(name: str) -> str:
    return name.replace("/", ".").rpartition(".")[2]


def _counted(items: Iterable[str]) -> list[str]:
    return [f"{n} x {item}" if n > 1 else item for item, n in Counter(items).items()]


def _of_blocks(names: Iterable[str]) -> list[str]:
    """Counted; names that differ in a number alone, that of a block, are one."""
    alike: dict[str, list[str]] = {}
    for name in names:
        alike.setdefault(re.sub(r"(?<=[._])\d+(?=[./])", "*", name), []).append(name)
    return [f"{len(of)} x {kind}" if len(of) > 1 else of[0] for kind, of in alike.items()]
