"""Two pictures that are readable with forty attentions: a few are named, the others are grey."""

from collections.abc import Mapping, Sequence
from functools import cmp_to_key
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from flatten_jax.analysis.style import LINES
from flatten_jax.bench.attention import DIRECTIONS, PLAIN
from flatten_jax.compare import costs
from flatten_jax.compare.results import REFERENCE, Preset

# A colour of its own for each; every other is grey. Softmax is what all is compared with.
HIGHLIGHTED = (REFERENCE, "linear", "focused", "inline", "rala", "polaformer", "agent")
_STYLES = {name: dict(LINES[i % len(LINES)], color=f"C{i}") for i, name in enumerate(HIGHLIGHTED)}
GREY = "0.82"
APART = 0.042  # of the axes' height, between labels


def cost_curves(groups: Sequence[Mapping[str, Any]], title: str = "") -> Figure:
    """Time of a layer over N, forward and with gradients, both axes logarithmic, each named curve at its end.

    Args:
        groups: of `costs.read`; `costs.drawn` of them.
    """
    names = list(dict.fromkeys(row["attention"] for group in groups for row in group["rows"]))
    figure = Figure(figsize=(11, 5), layout="constrained")
    drawn = []
    for axes, direction in zip(figure.subplots(1, 2, sharey=True), DIRECTIONS, strict=True):
        ends: dict[str, tuple[dict[int, float], str]] = {}
        drawn.append((axes, ends))
        for name in sorted(names, key=lambda name: name in HIGHLIGHTED):
            points = costs.curve(groups, name, "ms", direction, costs.drawn(groups))
            if not points or (name.startswith("softmax,") and name != PLAIN):
                continue
            if name == PLAIN:
                style = dict(color="black", linewidth=1, linestyle=":")
            else:
                style = dict(_STYLES[name], linewidth=2) if name in _STYLES else dict(color=GREY, linewidth=1)
            axes.plot(list(points), list(points.values()), marker="o", markersize=3, **style)
            if name in _STYLES or name == PLAIN:
                ends[name] = (points, style["color"])
        axes.set(xscale="log", yscale="log", title=direction, xlabel="tokens N")
        tokens = sorted({group["N"] for group in groups})
        axes.set_xticks(tokens, [f"{n:,}" for n in tokens])
        axes.set_xticks([], minor=True)
        axes.grid(alpha=0.3)
    for axes, ends in drawn:  # which share an axis: where labels are is known when all is drawn
        _label_ends(axes, ends)
    figure.axes[0].set_ylabel("ms")
    figure.suptitle(title, fontsize=9)
    return figure


def _label_ends(axes: Axes, ends: Mapping[str, tuple[dict[int, float], str]]) -> None:
    """Names right of the axes at the height where their curve ends, moved apart; each with a thin line to its curve.

    Of two names that is above whose curve is, where the shorter one ends: so the lines do not cross.
    """

    def above(one: str, other: str) -> float:
        last = min(max(ends[one][0]), max(ends[other][0]))
        return ends[one][0].get(last, 0.0) - ends[other][0].get(last, 0.0)

    if not ends:
        return
    axes.get_xlim(), axes.get_ylim()  # sets them
    to_share = axes.transData + axes.transAxes.inverted()
    places = {name: to_share.transform((max(points), points[max(points)])) for name, (points, _) in ends.items()}
    height = -1.0
    for name in sorted(places, key=cmp_to_key(above)):
        height = max(places[name][1], height + APART)
        axes.annotate(
            name,
            xy=tuple(places[name]),
            xytext=(1.03, height),
            xycoords="axes fraction",
            textcoords="axes fraction",
            color=ends[name][1],
            fontsize=8,
            va="center",
            arrowprops=dict(arrowstyle="-", color=ends[name][1], linewidth=0.5, relpos=(0, 0.5)),
        )


def accuracies(preset: Preset) -> Figure:
    """A line for each attention, best first: seeds as points, their mean as a stroke; that of softmax goes through."""
    rows = [row for row in preset.rows if row.mean]
    figure = Figure(figsize=(7, 1 + 0.19 * len(rows)), layout="constrained")
    axes = figure.subplots()
    for place, row in enumerate(reversed(rows)):
        color = _STYLES[row.label]["color"] if row.label in _STYLES else "0.55"
        axes.plot(list(row.top1.values()), [place] * len(row.top1), "o", color=color, markersize=3.5, alpha=0.7)
        axes.plot([row.mean.mean], [place], "|", color=color, markersize=9, markeredgewidth=2)
        if row.label == REFERENCE:
            axes.axvline(row.mean.mean, color=color, linewidth=0.8, linestyle="--")
    axes.set_yticks(range(len(rows)), [row.label for row in reversed(rows)], fontsize=8)
    for label, row in zip(axes.get_yticklabels(), reversed(rows), strict=True):
        label.set_fontweight("bold" if row.label in HIGHLIGHTED else "normal")
    axes.set(xlabel="top-1 in % after the last epoch: seeds (points) and their mean (stroke)", ylim=(-1, len(rows)))
    axes.grid(alpha=0.3)
    axes.set_title(preset.name, fontsize=10)
    return figure
