"""Curves of the attention sweep."""

from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from flatten_jax.analysis.style import LINES
from flatten_jax.bench.attention import curve

MARKERS = "osD^vPX*"
HIGHLIGHTED = ("focused", "linear", "inline", "rala")
PANELS = {"ms": "time of one layer in ms", "MiB": "memory in MiB (temporaries and results)"}


def attention_curves(rows: Sequence[dict[str, Any]], title: str = "") -> Figure:
    """Time and memory over N, both axes logarithmic; a row of panels for each direction.

    Args:
        rows: of `attention.sweep`. Memory is drawn also where a layer was compiled and not run.
        title: over the picture, such as the machine.
    """
    names = list(dict.fromkeys(row["attention"] for row in rows))
    directions = list(dict.fromkeys(row["direction"] for row in rows))
    figure = Figure(figsize=(10, 4.2 * len(directions)), layout="constrained")
    panels = figure.subplots(len(directions), len(PANELS), squeeze=False, sharex=True)
    for direction, pair in zip(directions, panels, strict=True):
        for (key, label), axes in zip(PANELS.items(), pair, strict=True):
            for i, name in enumerate(names):
                points = curve(rows, name, direction, key)
                axes.plot(list(points), list(points.values()), **_style(i, name, names), label=name)
            axes.set(xscale="log", yscale="log", title=direction, ylabel=label)
            tokens = sorted({row["N"] for row in rows})
            axes.set_xticks(tokens, [f"{n:,}" for n in tokens], rotation=45, ha="right")
            axes.set_xticks([], minor=True)
            axes.grid(alpha=0.3)
            _slopes(axes, tokens)
            if axes.get_subplotspec().is_last_row():
                axes.set_xlabel("tokens N")
    handles = [line for line in panels[0, 0].lines if line.get_marker() != "None"]
    panels[0, 0].legend(handles=handles, fontsize=8)
    figure.suptitle(title, fontsize=9)
    return figure


def _style(i: int, name: str, names: Sequence[str]) -> dict[str, Any]:
    """Of a curve. Where there are more than styles, softmax and the attentions of the papers' tables stand out."""
    if len(names) > len(MARKERS):
        shown = [n for n in names if "softmax" in n or n in HIGHLIGHTED]
        if name not in shown:
            return dict(color="0.8", linewidth=1, zorder=1)
        i, names = shown.index(name), shown
    # The same softmax may be there twice: what is drawn later is smaller, and does not hide the other.
    size = 9 - 5 * i / max(1, len(names) - 1)
    return LINES[i % len(LINES)] | dict(marker=MARKERS[i % len(MARKERS)], markersize=size, linewidth=1.7)


def _slopes(axes: Axes, tokens: Sequence[int]) -> None:
    """Thin lines that grow as N and N^2 from the lowest point, for the eye."""
    if len(tokens) < 2:
        return
    lowest = min(value for drawn in axes.lines for value in drawn.get_ydata())
    bottom, top = 0.5 * lowest, axes.get_ylim()[1]
    axes.set_ylim(bottom, top)
    for power, name in (1, "N"), (2, "N²"):
        heights = [0.7 * lowest * (n / tokens[0]) ** power for n in tokens]
        axes.plot(tokens, heights, color="0.75", linewidth=0.8, zorder=0)
        inside = [(n, height) for n, height in zip(tokens, heights, strict=True) if height < top]
        # Below its line: above it are the curves.
        place = dict(xytext=(0, -4), textcoords="offset points", ha="right", va="top")
        axes.annotate(f"~ {name}", inside[-1], color="0.4", fontsize=8, **place)
