"""What the runs of folders say, gathered from their files alone."""

import json
import math
import statistics
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, field, replace
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
        facts: parameters, multiply_adds, images_per_second (median over runs on the first machine of the preset).
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
    def seeds(self) -> set[int]:
        """Of the runs at softmax's learning rate."""
        return self.top1.keys() | self.failed.keys()

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

    @property
    def machine(self) -> str | None:
        """The first of those that made the runs."""
        return next((machine for machine, _ in self.made), None)

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


def read(source: Path) -> list[Preset]:
    """The presets of a folder that `compare run` wrote, or of the JSON of an earlier page; [] where there are none."""
    if source.is_file():
        return [_restored(content) for content in json.loads(source.read_text())["learned"]]
    return [_preset(path.parent) for path in sorted(source.glob("*/preset.json"))]


def merged(presets: Sequence[Preset]) -> list[Preset]:
    """The same presets of several sources as one each, in the order of their names' first.

    ValueError where their settings or learning rates differ, or where two have a run alike.
    """
    by_name: dict[str, Preset] = {}
    for preset in presets:
        mine = by_name.get(preset.name)
        by_name[preset.name] = _both(mine, preset) if mine else preset
    return list(by_name.values())


def _both(one: Preset, other: Preset) -> Preset:
    for what in ("changed", "rate"):
        if getattr(one, what) != getattr(other, what):
            raise ValueError(
                f"runs of {one.name} with {what} {getattr(one, what)} and {getattr(other, what)} cannot be compared: "
                "make a page of each"
            )
    rows = {(row.attention, row.hybrid): row for row in one.rows}
    for row in other.rows:
        if one.machine != other.machine:
            row.facts.pop("images_per_second", None)
        kind = row.attention, row.hybrid
        rows[kind] = _joined(rows[kind], row, one.name) if kind in rows else row
    both = replace(one, made=one.made + other.made, under_way=one.under_way + other.under_way)
    return _assembled(both, rows.values())


def _joined(one: Row, other: Row, preset: str) -> Row:
    """Two with other seeds."""
    if twice := sorted(one.seeds & other.seeds):
        raise ValueError(
            f"two sources have {one.label}, seed {twice[0]}, of {preset}: leave one of them out, or move the runs that "
            "only one has into the folder of the other"
        )
    rates = {one.rate, other.rate} - {None}
    if len(rates) > 1:
        raise ValueError(f"two sources have {sorted(rates)} as own rates of {one.label} of {preset}: leave one out")
    looked = [row for row in (one, other) if row.looks]
    seeds = [len(row.top1) for row in looked]
    looks = {look: statistics.fmean([row.looks[look] for row in looked], seeds) for look in one.looks | other.looks}
    return Row(
        *(one.attention, one.hybrid, one.top1 | other.top1, one.failed | other.failed),
        *(max(rates, default=None), one.own | other.own, other.facts | one.facts, looks),
    )


def _assembled(preset: Preset, rows: Collection[Row]) -> Preset:
    """The preset with these rows, the best first, and with their differences to softmax."""
    reference = next((row.top1 for row in rows if row.label == REFERENCE), None)
    for row in rows:
        row.difference = None if reference is None or row.label == REFERENCE else paired(row.top1, reference)
    ordered = sorted(rows, key=lambda row: (-row.mean.mean if row.mean else math.inf, row.label))
    return replace(preset, rows=ordered)


def plain(preset: Preset) -> dict[str, Any]:
    """For JSON; `read` takes it, but for runs that are under way."""
    made = [{"machine": machine, "commit": commit, "runs": n} for (machine, commit), n in preset.made.items()]
    rows = [
        {
            **asdict(row),
            "mean": row.mean and row.mean._asdict(),
            "difference": row.difference and row.difference._asdict(),
        }
        for row in preset.rows
    ]
    found = {"published": preset.agreement(), **{look: preset.explained(look) for look in LOOKS}}
    return {
        **{name: getattr(preset, name) for name in ("name", "about", "changed", "rate", "tried", "under_way")},
        "made": made,
        "rows": rows,
        "kendall": {name: value and value._asdict() for name, value in found.items()},
    }


def _restored(content: dict[str, Any]) -> Preset:
    """Of `plain`. Runs that were under way have no folder here."""
    rows = []
    for row in content["rows"]:
        by_seed = {name: {int(seed): value for seed, value in row[name].items()} for name in ("top1", "failed", "own")}
        same = {name: row[name] for name in ("attention", "hybrid", "rate", "facts", "looks")}
        rows.append(Row(**same, **by_seed))
    made = Counter({(entry["machine"], entry["commit"]): entry["runs"] for entry in content["made"]})
    same = {name: content[name] for name in ("name", "about", "changed", "rate", "tried")}
    return _assembled(Preset(**same, rows=[], made=made, under_way=[]), rows)


def _preset(folder: Path) -> Preset:
    described = json.loads((folder / "preset.json").read_text())
    results = [json.loads(path.read_text()) for path in sorted(folder.glob("runs/*/result.json"))]
    rates = [json.loads(path.read_text()) for path in sorted(folder.glob("rate_*.json"))]
    own = {(rate["attention"], rate["hybrid"]): rate for rate in rates}
    reference = own.get((REFERENCE, ""), {"chosen": None, "tried": []})
    made = Counter((_machine(result["made_on"]), result["commit"]) for result in results)
    runs = [path.name for path in sorted(folder.glob("runs/*")) if not (path / "result.json").exists()]
    preset = Preset(
        *(described["preset"], described["about"], described.get("changed", [])),
        *(reference["chosen"], reference["tried"], [], made, runs),
    )
    rows = []
    for kind in dict.fromkeys((result["attention"], result["hybrid"]) for result in results):
        mine = [result for result in results if (result["attention"], result["hybrid"]) == kind]
        own_rate = own[kind]["chosen"] if kind in own else None
        rows.append(_row(kind, mine, reference["chosen"], own_rate, preset.machine))
    return _assembled(preset, rows)


def _row(
    kind: tuple[str, str],
    results: Sequence[dict[str, Any]],
    rate: float | None,
    own: float | None,
    machine: str | None,
) -> Row:
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
        alike = [r for r in results if fact != "images_per_second" or _machine(r["made_on"]) == machine]
        values = [result[fact] for result in alike if result.get(fact) is not None]
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
