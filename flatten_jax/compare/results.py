"""What the runs of a folder say, gathered from their files alone."""

import json
import math
import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flatten_jax.compare.published import SAME_HOST
from flatten_jax.compare.statistics import Kendall, Summary, kendall, paired, summary
from flatten_jax.counted import counted

REFERENCE = "softmax"
FEWEST = 4  # attentions of which an order can say anything: of three, p is never below .33
LOOKS = ("rank", "entropy", "distance", "focus")


@dataclass
class Row:
    """One attention, or a hybrid of it.

    Attributes:
        attention, hybrid: see `runner.Case`.
        top1: seed -> percent after the last epoch, at the learning rate of softmax.
        failed: seed -> why there is none: "not finite: ...", "does not fit: ...".
        rate, own: its own best of three rates, and top-1 by seed with it, where they were asked for.
        facts: parameters, multiply_adds, images_per_second (median over runs).
        looks: `LOOKS`, means over blocks and seeds: rank as a share of the keys, entropy as a share of the largest.
        difference: to softmax, seed by seed; set by `Preset`.
    """

    attention: str
    hybrid: str
    top1: dict[int, float] = field(default_factory=dict)
    failed: dict[int, str] = field(default_factory=dict)
    rate: float | None = None
    own: dict[int, float] = field(default_factory=dict)
    facts: dict[str, float] = field(default_factory=dict)
    looks: dict[str, float] = field(default_factory=dict)
    difference: Summary | None = None

    @property
    def label(self) -> str:
        return f"{self.attention} {self.hybrid}".strip()

    @property
    def mean(self) -> Summary | None:
        return summary(list(self.top1.values()))


@dataclass(frozen=True)
class Preset:
    """The runs of one preset.

    Attributes:
        name, about: of the preset.
        changed: settings that were given otherwise for all runs, "train.epochs=8.0".
        rate, tried: learning rate of all, and what softmax reached with which in a short search.
        rows: best mean first, then what has none.
        made: (machine and versions, commit) -> how many runs.
        under_way: folders of runs without a result.
    """

    name: str
    about: str
    changed: list[str]
    rate: float | None
    tried: list[dict[str, Any]]
    rows: list[Row]
    made: Counter
    under_way: list[str]

    def agreement(self) -> Kendall | None:
        """With the published order on one host, of those attentions that both have."""
        return _kendall(
            [(row.mean.mean, SAME_HOST[row.label]) for row in self.rows if row.mean and row.label in SAME_HOST]
        )

    def explained(self, look: str) -> Kendall | None:
        """Top-1 against one of `LOOKS`, of all that are no hybrids."""
        rows = [row for row in self.rows if row.mean and not row.hybrid and look in row.looks]
        return _kendall([(row.mean.mean, row.looks[look]) for row in rows])


def _kendall(pairs: Sequence[tuple[float, float]]) -> Kendall | None:
    if len(pairs) < FEWEST:
        return None
    found = kendall(*map(list, zip(*pairs, strict=True)))
    return None if math.isnan(found.tau) else found


def read(folder: Path) -> list[Preset]:
    """The presets of a folder that `compare run` wrote, or [] where there are none."""
    return [_preset(path.parent) for path in sorted(folder.glob("*/preset.json"))]


def _preset(folder: Path) -> Preset:
    described = json.loads((folder / "preset.json").read_text())
    results = [json.loads(path.read_text()) for path in sorted(folder.glob("runs/*/result.json"))]
    rates = [json.loads(path.read_text()) for path in sorted(folder.glob("rate_*.json"))]
    own = {(rate["attention"], rate["hybrid"]): rate for rate in rates}
    reference = own.get((REFERENCE, ""), {"chosen": None, "tried": []})
    rows = {}
    for kind in dict.fromkeys((result["attention"], result["hybrid"]) for result in results):
        mine = [result for result in results if (result["attention"], result["hybrid"]) == kind]
        rows[kind] = _row(kind, mine, reference["chosen"], own[kind]["chosen"] if kind in own else None)
    for row in rows.values():
        if row.label != REFERENCE and (REFERENCE, "") in rows:
            row.difference = paired(row.top1, rows[REFERENCE, ""].top1)
    made = Counter((_machine(result["made_on"]), result["commit"]) for result in results)
    runs = [path.name for path in sorted(folder.glob("runs/*")) if not (path / "result.json").exists()]
    ordered = sorted(rows.values(), key=lambda row: (-row.mean.mean if row.mean else math.inf, row.label))
    return Preset(
        *(described["preset"], described["about"], described.get("changed", [])),
        *(reference["chosen"], reference["tried"], ordered, made, runs),
    )


def _row(kind: tuple[str, str], results: Sequence[dict[str, Any]], rate: float | None, own: float | None) -> Row:
    row = Row(*kind, rate=own)
    for result in results:
        if result["rate"] == rate:
            if result["status"] == "finished":
                row.top1[result["seed"]] = result["top1"]
            else:
                row.failed[result["seed"]] = f"{result['status']}: {result['said']}"
        if result["rate"] == own and result["status"] == "finished":
            row.own[result["seed"]] = result["top1"]
    for fact in ("parameters", "multiply_adds", "images_per_second"):
        values = [result[fact] for result in results if result.get(fact) is not None]
        if values:
            row.facts[fact] = statistics.median(values)
    blocks = [
        block
        for result in results
        if result["rate"] == rate
        for block in result.get("inside", [])
        if "said" not in block
    ]
    if blocks:
        values = {
            "rank": [block["rank"] / block["keys"] for block in blocks],
            "entropy": [block["entropy"] / block["uniform"] for block in blocks],
            "distance": [block["distance"] for block in blocks],
            "focus": [block["focus"] for block in blocks],
        }
        row.looks = {name: statistics.fmean(each) for name, each in values.items()}
    return row


def _machine(made_on: dict[str, Any]) -> str:
    """Without the date, which is another each day."""
    cores = f"{counted(made_on['cores'], 'core')} of {made_on['processor']}"
    device = made_on["device"] if made_on["device"] != "cpu" else cores
    return f"{device}, JAX {made_on['jax']}, flax {made_on['flax']}, Python {made_on['python']}"
