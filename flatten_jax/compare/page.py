"""The page of a comparison: tables and pictures of what its folders hold, and what they do not."""

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from flatten_jax.attention import attention_class, list_attentions
from flatten_jax.bench.report import cell
from flatten_jax.bench.timing import Spread
from flatten_jax.compare import costs, pictures, results
from flatten_jax.compare.presets import PRESETS
from flatten_jax.compare.published import HOST, PUBLISHED
from flatten_jax.compare.statistics import Kendall, Summary
from flatten_jax.counted import counted

INTRODUCTION = """# Comparison

Every attention of the library on one host, by one recipe, on one machine. `flatten-jax compare page` writes this page
from the files of the runs; nothing in it is written by hand. The same in numbers: [{json}]({json}).

    flatten-jax compare costs --out DIR                                  # nothing is trained
    flatten-jax compare costs --topology v5e:2x2 --batch-tokens 65536 --out DIR   # by the TPU's compiler; h100:1
    flatten-jax compare run --preset digits --out DIR                    # --attentions softmax linear ... --seeds 3
    flatten-jax compare run --preset digits --out DIR --patterns evenly:1 first:1 --learning-rates best
    flatten-jax compare page DIR --output docs/comparison.md --overwrite
    flatten-jax compare page docs/comparison.json DIR2 --output docs/comparison.md --overwrite  # adds another DIR's

A run is one of main.py, in `DIR/PRESET/runs/`: `flatten-jax curves`, `predict` and `main.py --mode=eval` take it. What
is finished is skipped and what was killed goes on, also where several machines are given the same DIR. Everything but
the attention is held fixed: host, data and their order, first seeds, steps, augmentation, schedule. The learning rate
is the best of three for softmax; `--learning-rates best` adds each attention's own. Hybrids (`--patterns`) keep softmax
in some blocks. CIFAR-10 is given as for `configs/cifar10.py`, `--config.data.folder=PATH`, as is what
`flatten-jax lra pathfinder` makes.
"""
MIDDLE = 3136  # the N that a table's other columns are of, or the largest below
LEGEND = """top-1: percent of the test set after the last epoch, never of the best one, mean ± standard deviation over
seeds. A seed fixes the first parameters, the order of the data and the augmentation, and "- softmax" is the mean
difference to softmax with the same seed. Learning rate, recipe and steps are softmax's. G: 10^9 multiply-adds of an
image. Inside, means over blocks, heads and pictures of the trained models, without local branches: rank and entropy as
shares of the largest possible, distance in pixels from a query to what it attends to, focus the largest share of a row
as a multiple of the mean. Of attentions without a matrix it is the influence of tokens on each other. images/s: as the
runs on the first machine named above logged it, whatever else it did meanwhile; for speed there are the costs.
"""


def write(sources: Sequence[Path], output: Path, overwrite: bool = False) -> list[Path]:
    """The page, its JSON and its pictures; the paths that were written.

    Args:
        sources: folders of `compare costs` and `compare run`; the JSON of an earlier page, whose folders may be gone.

    Raises:
        ValueError: a source without costs and runs, two that have the same, or an output that is no .md.
        FileExistsError: one of the files is there and `overwrite` is not.
    """
    if output.suffix != ".md":
        raise ValueError(f"--output {output} must end in .md")
    timed, elsewhere, presets = _gathered(sources)
    files = {"json": output.with_suffix(".json")}
    curves = next((groups for groups in timed if len({group["N"] for group in groups}) > 1), None)
    if curves:
        files["costs"] = output.with_name(f"{output.stem}_costs.png")
    for preset in presets:
        files[preset.name] = output.with_name(f"{output.stem}_{preset.name}.png")
    for path in (output, *files.values()):
        if path.exists() and not overwrite:
            raise FileExistsError(f"{path} exists already: choose another --output, or --overwrite")
    output.parent.mkdir(parents=True, exist_ok=True)
    names = {kind: path.name for kind, path in files.items()}
    text = [INTRODUCTION.format(json=names["json"])]
    for groups in timed:
        text += _costs(groups, names["costs"] if groups is curves else None)
    text += _compiled(elsewhere)
    for preset in presets:
        text += _learned(preset, names[preset.name])
    text += _not_run(timed, elsewhere, presets)
    output.write_text("\n".join(text))
    content = {
        "costs": [group for groups in timed for group in groups],
        "compiled": elsewhere,
        "learned": [results.plain(preset) for preset in presets],
    }
    files["json"].write_text(json.dumps(content, indent=1, default=asdict) + "\n")
    if curves:
        pictures.cost_curves(curves, _costs_title(curves)).savefig(files["costs"], dpi=120)
    for preset in presets:
        pictures.accuracies(preset).savefig(files[preset.name], dpi=120)
    return [output, *files.values()]


def _gathered(sources: Sequence[Path]) -> tuple[list[list[dict[str, Any]]], list[dict[str, Any]], list[results.Preset]]:
    """Costs of each machine, what compilers made, and presets."""
    timed: dict[str, dict[tuple, dict[str, Any]]] = {}
    elsewhere: dict[str, dict[str, Any]] = {}
    presets = []
    for source in sources:
        try:
            groups, compiled, learned = costs.read(source), costs.read_compiled(source), results.read(source)
        except (KeyError, TypeError, json.JSONDecodeError) as error:
            raise ValueError(f"{source} is no JSON of `flatten-jax compare page`, or damaged: {error!r}") from error
        if not (groups or compiled or learned):
            raise ValueError(f"{source} holds neither {costs.FILE} nor runs of `flatten-jax compare run`")
        found = [(timed.setdefault(_machine(group), {}), costs.key(group), group) for group in groups]
        found += [(elsewhere, entry["topology"], entry) for entry in compiled]
        for where, key, content in found:
            if key in where:
                raise ValueError(f"{source} has the costs of {key} once more: leave one of the two sources out")
            where[key] = content
        presets += learned
    return [list(groups.values()) for groups in timed.values()], list(elsewhere.values()), results.merged(presets)


def _costs_title(timed: Sequence[dict[str, Any]]) -> str:
    block = costs.drawn(timed)
    return f"one layer, C = {block.channels}, h = {block.heads}, {_images(timed)}, {block.dtype}; {_machine(timed[0])}"


def _images(timed: Sequence[dict[str, Any]]) -> str:
    """How many are computed at a time."""
    batches = {group["N"]: group.get("batch", 1) for group in timed}
    if set(batches.values()) == {1}:
        return "one image"
    return _and([f"{batch} of {n:,}" for n, batch in sorted(batches.items())]) + " tokens at a time"


def _machine(group: dict[str, Any]) -> str:
    made_on = group["made_on"]
    device = "" if made_on["device"] == "cpu" else f"{made_on['device']}, "
    return f"{device}{counted(made_on['cores'], 'core')} of {made_on['processor']}, JAX {made_on['jax']}"


def _costs(timed: list[dict[str, Any]], picture: str | None) -> Iterator[str]:
    """Of one machine."""
    device = timed[0]["made_on"]["device"]
    yield f"## What a layer costs on {'a CPU' if device == 'cpu' else f'one {device}'}\n"
    commits = sorted({group["commit"] for group in timed})
    dates = sorted({group["made_on"]["date"] for group in timed})
    rounds = sorted({group["rounds"] for group in timed})
    yield (
        f"From tokens to result with its projections, {_images(timed)}. {_machine(timed[0])}; {_and(dates)}; "
        f"commit {_and(commits)}.\nAll take turns in {_and(rounds)} rounds; a time is the median (lowest-highest), "
        f"and a ratio is of times of the same\nround. What would take seconds a call, or more memory than there "
        f"is, is left out.\n"
    )
    if picture:
        yield f"![Time over tokens]({picture})\n"
    for key in dict.fromkeys((g["channels"], g["heads"], g["dtype"]) for g in timed):
        for direction in dict.fromkeys(g["direction"] for g in timed):
            mine = [g for g in timed if costs.key(g)[:3] == key and g["direction"] == direction]
            if mine:
                yield from _cost_table(mine, costs.Block(*key, ()), direction)


def _compiled(elsewhere: list[dict[str, Any]]) -> Iterator[str]:
    """What compilers made without a machine."""
    for compiled in elsewhere:
        first = compiled["rows"][0]
        yield (
            f"### By the compiler for {compiled['topology']}\n\nNothing was run: what its compiler makes of the "
            f"forward pass for one chip, C = {costs.MAIN.channels}, {costs.MAIN.heads} heads, N = {first['N']:,}, "
            f"{counted(compiled['images'], 'image')} at a time, {first['dtype']}; commit {compiled['commit']}.\n"
            "Bytes are read from the chip's main memory and written to it by all kernels, as `plan --roof` counts\n"
            "them; MiB: temporaries and results. The fewest bytes first.\n"
        )
        columns = {"bytes": 1e9, "flops": 1e9, "MiB": 1, "fusions": 1, "custom calls": 1, "said": 1}
        rows = [
            [
                f"`{r['attention']}`",
                *(
                    "-" if r.get(c) is None else _short(r[c] / unit if unit > 1 else r[c])
                    for c, unit in columns.items()
                ),
            ]
            for r in sorted(compiled["rows"], key=lambda r: r.get("bytes") or math.inf)
        ]
        titles = ("attention", "GB moved", "G operations", "MiB", "fusions", "custom calls", "not compiled")
        yield from _table(titles, rows)


def _cost_table(groups: list[dict[str, Any]], block: costs.Block, direction: str) -> Iterator[str]:
    """A row for each attention, the fastest at the largest N first; a column for the time at each N."""
    cells = {(row["attention"], group["N"]): row for group in groups for row in group["rows"]}
    tokens = sorted({n for _, n in cells})
    middle = max((n for n in tokens if n <= MIDDLE), default=tokens[0])
    softmax = costs.curve(groups, "softmax", "ms", direction, block)
    titles = ["attention", "parameters", f"G at {middle:,}", *(f"ms at {n:,}" for n in tokens)]
    titles += [f"time / linear at {middle:,}", f"MiB at {middle:,}", "compile, s", "faster than softmax from N"]
    rows = []
    for name in dict.fromkeys(name for name, _ in cells):
        own = {n: cells[name, n] for n in tokens if (name, n) in cells}
        size, times = own.get(middle, {}), costs.curve(groups, name, "ms", direction, block)
        row = [f"`{name}`", f"{size['parameters']:,}" if "parameters" in size else "-"]
        row.append(f"{size['multiply-adds'] / 1e9:.3f}" if "multiply-adds" in size else "-")
        row += [_short(own[n]["ms"]) if n in own else "-" for n in tokens]
        row += [_short(size.get(column, "-")) for column in ("time / linear", "MiB")]
        row.append(_short(own.get(tokens[0], {}).get("compile s", "-")))
        crossed = costs.crossing(times, softmax)
        row.append("-" if "softmax" in name else "nowhere here" if crossed is None else f"{crossed:,.0f}")
        rows.append(((-max(times, default=0), *list(times.values())[-1:]), row))
    yield f"### C = {block.channels}, {block.heads} heads, {block.dtype}, {direction}\n"
    yield from _table(titles, [row for _, row in sorted(rows, key=lambda entry: entry[0])])


def _learned(preset: results.Preset, picture: str) -> Iterator[str]:
    made = preset.made.items()
    machines = [f"{counted(count, 'run')} on {machine} at commit {commit}" for (machine, commit), count in made]
    changed = (
        f" Other than the preset: {_and([f'`{setting}`' for setting in preset.changed])}." if preset.changed else ""
    )
    yield f"## What they learn: {preset.name}\n\n{preset.about}.{changed} {'; '.join(machines)}.\n"
    tried = "; ".join(
        f"{entry['rate']:g}: {entry['status'] if entry['top1'] is None else format(entry['top1'], '.1f') + ' %'}"
        for entry in preset.tried
    )
    yield f"Learning rate {preset.rate:g} for a batch of 512, the best of softmax in a short search ({tried}).\n"
    yield f"![Accuracies]({picture})\n"
    own = any(row.rate is not None and row.label != results.REFERENCE for row in preset.rows)
    titles = ["attention", "seeds", "top-1", "- softmax", *(["own best of three"] if own else [])]
    titles += ["published", "parameters", "G", "images/s", *results.LOOKS]
    rows = []
    for row in preset.rows:
        cells = [f"`{row.label}`", str(len(row.top1)), _pm(row.mean), _pm(row.difference, "+")]
        if own:
            cells.append("-" if row.rate is None else f"{_pm(results.summary(list(row.own.values())))} at {row.rate:g}")
        said = PUBLISHED.get(row.label)
        cells.append("-" if said is None else f"{said.top1}{'*' if said.changed else ''}")
        facts = row.facts
        cells.append(f"{facts['parameters']:,.0f}" if "parameters" in facts else "-")
        cells.append(_short(facts["multiply_adds"] / 1e9) if "multiply_adds" in facts else "-")
        cells.append(f"{facts['images_per_second']:.0f}" if "images_per_second" in facts else "-")
        cells += [_short(row.looks[look]) if look in row.looks else "-" for look in results.LOOKS]
        rows.append(cells)
    yield from _table(titles, rows)
    yield LEGEND
    yield (
        f"published: top-1 of {HOST}, by the authors; * with another host than DeiT's, not counted below. "
        f"{_agreement('This order and the published one of the same host', preset.agreement())}\n"
    )
    said = [_agreement(f"Top-1 and {look}", preset.explained(look)) for look in results.LOOKS]
    yield f"Do ranks and focus explain it, over all attentions here? {' '.join(said)}\n"
    failed = [f"- `{r.label}`, seed {seed}: {why}" for r in preset.rows for seed, why in sorted(r.failed.items())]
    yield "\n".join(["No result:", "", *failed, ""] if failed else ["No run failed.\n"])


def _agreement(what: str, found: Kendall | None) -> str:
    if found is None:
        return f"{what}: too few to compare."
    how = "exact" if found.exact else "by normal approximation"
    return f"{what}: Kendall's tau-b {found.tau:.2f}, p = {found.p:.2g} ({how}, {found.count} attentions)."


def _not_run(timed: list, elsewhere: list, presets: list[results.Preset]) -> Iterator[str]:
    """What is not in the folders."""
    said = []
    every = [name for name in list_attentions() if not attention_class(name).takes_before]
    for preset in presets:
        there = {row.label for row in preset.rows}
        if missing := [name for name in every if name not in there]:
            said.append(f"`{preset.name}` without {', '.join(missing)}")
        seeds = max((len(row.top1) + len(row.failed) for row in preset.rows), default=0)
        if fewer := [row.label for row in preset.rows if len(row.top1) + len(row.failed) < seeds]:
            said.append(f"`{preset.name}` with fewer than {seeds} seeds of {', '.join(fewer)}")
        if preset.under_way:
            said.append(f"{counted(len(preset.under_way), 'run')} of `{preset.name}` not finished")
    names = {preset.name for preset in presets}
    said += [f"preset `{name}` ({preset.about})" for name, preset in PRESETS.items() if name not in names]
    if not timed:
        said.append("costs")
    compiled = {entry["topology"].partition(":")[0] for entry in elsewhere}
    if not any(topology.startswith("v") for topology in compiled):
        said.append("the TPU's compiler (`compare costs --topology v5e:2x2`)")
    if not any(topology[:1] in "ah" for topology in compiled):
        said.append("the GPU's compiler (`compare costs --topology h100:1`)")
    for groups in timed[1:]:
        if missing := sorted(set(_named(timed[0])) - set(_named(groups))):
            said.append(f"costs on {_machine(groups[0])} without {', '.join(missing)}")
    if all(groups[0]["made_on"]["device"] == "cpu" for groups in timed):
        said.append("times on a GPU or TPU")
    yield "## What was not run\n"
    yield "\n".join(f"- {line}" for line in said) + "\n"


def _named(groups: Sequence[dict[str, Any]]) -> list[str]:
    return [
        row["attention"] for group in groups for row in group["rows"] if not row["attention"].startswith("softmax,")
    ]


def _table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    lines = [titles, ["---"] * len(titles), *rows]
    yield "\n".join(f"| {' | '.join(cells)} |" for cells in lines) + "\n"


def _short(value: Any) -> str:
    return cell(value) if isinstance(value, Spread | float) else str(value)


def _pm(found: Summary | None, sign: str = "") -> str:
    if found is None:
        return "-"
    spread = "" if found.spread is None else f" ± {found.spread:.2f}"
    return f"{found.mean:{sign}.2f}{spread}"


def _and(values: Sequence[Any]) -> str:
    return ", ".join(map(str, values))
