"""Pictures of attention. Every function returns a figure; `figure.savefig(path)` writes it, a notebook shows it."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from flatten_jax.analysis.matrices import mean
from flatten_jax.analysis.profile import BlockProfile
from flatten_jax.analysis.style import LINES, MAP
from flatten_jax.attention import focused_map

# The query and the four keys of the paper's Fig. 4.
QUERY = (0.39, 0.94)
KEYS = ((0.43, 0.87), (0.54, 0.30), (0.97, 0.32), (0.86, 0.14))


def attention_maps(
    pictures: Sequence[np.ndarray],
    queries: Sequence[tuple[int, int]],
    maps: Mapping[str, Sequence[np.ndarray]],
    title: str = "",
) -> Figure:
    """A row for each query: its picture with the query marked, then what it attends to, one attention after the other.

    Each map has its own colours, from 0 to its largest value, which stands above it as a multiple of the mean.

    Args:
        pictures: of each row, (height, width, 3) uint8.
        queries: of each row, (row, column) on the grid of tokens.
        maps: name -> of each row, (rows, columns) of that grid: see `profile.query_maps`.
    """
    height, width = pictures[0].shape[:2]
    size = (2.2 * (1 + len(maps)) + 0.6, 2.2 * len(queries) * height / width + 0.7)
    figure = Figure(figsize=size, layout="constrained")
    grid = figure.subplots(len(queries), 1 + len(maps), squeeze=False)
    whole = dict(extent=(0, width, height, 0), interpolation="nearest")
    for i, (picture, query, row) in enumerate(zip(pictures, queries, grid, strict=True)):
        row[0].imshow(picture, **whole)
        row[0].set_title("" if i else "picture and query", fontsize=10)
        for axes, (name, values) in zip(row[1:], maps.items(), strict=True):
            value = values[i]
            shading = axes.imshow(value / value.max(), cmap=MAP, vmin=0, vmax=1, **whole)
            peak = f"largest: {value.max() / value.mean():.1f} x mean"
            axes.set_title(peak if i else f"{name}\n{peak}", fontsize=9 if i else 10)
        for axes in row:
            axes.set(xticks=[], yticks=[])
            rows, columns = value.shape
            _mark(axes, (query[1] + 0.5) * width / columns, (query[0] + 0.5) * height / rows)
    figure.suptitle(title)
    bar = figure.colorbar(shading, ax=grid, shrink=0.8, pad=0.01, ticks=(0, 1), aspect=40)
    bar.ax.set_yticklabels(("0", "largest"))
    return figure


def _mark(axes: Axes, x: float, y: float) -> None:
    """A cross that is seen on light and dark."""
    axes.plot(x, y, marker="+", markersize=11, markeredgewidth=3.4, color="black")
    axes.plot(x, y, marker="+", markersize=10, markeredgewidth=1.4, color="white")


def spectra(
    values: Mapping[str, np.ndarray], ranks: Mapping[str, int], head_width: int | None = None, title: str = ""
) -> Figure:
    """Singular values of attention matrices, divided by the largest, with the rank in the legend.

    Args:
        values: name -> (N,) singular values, descending.
        ranks: name -> numerical rank.
        head_width: d, the bound of linear attention, drawn as a vertical line.
    """
    figure = Figure(figsize=(6.5, 4), layout="constrained")
    axes = figure.subplots()
    for (name, singular), style in zip(values.items(), LINES, strict=False):
        label = f"{name}: rank {ranks[name]} of {len(singular)}"
        axes.semilogy(np.arange(1, len(singular) + 1), singular / singular[0], label=label, linewidth=1.8, **style)
    if head_width is not None:
        axes.axvline(head_width, color="black", linewidth=0.8)
        place = dict(xy=(head_width, 1.5e-8), xytext=(3, 0), textcoords="offset points")
        axes.annotate(f"head width {head_width}", **place, fontsize=8)
    axes.set_title(title, fontsize=10)
    axes.set(xlabel="number of the singular value", ylabel="singular value / largest", ylim=(1e-8, 1.8))
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    return figure


def by_depth(profiles: Mapping[str, Sequence[BlockProfile]]) -> Figure:
    """Entropy of the attention and its distance, block by block: the mean over heads, and the heads as points.

    Args:
        profiles: name -> what `depth_profile` gives, of one or more models.
    """
    figure = Figure(figsize=(10, 3.8), layout="constrained")
    panels = figure.subplots(1, 2)
    for (name, blocks), style in zip(profiles.items(), LINES, strict=False):
        x = [profile.block for profile in blocks]
        for axes, values in zip(panels, ([p.entropy for p in blocks], [p.distance for p in blocks]), strict=True):
            axes.plot(x, [mean(v) for v in values], label=name, linewidth=1.8, **style)
            for place, heads in zip(x, values, strict=True):
                axes.plot([place] * len(heads), heads, ".", color=style["color"], markersize=4, alpha=0.6)
    longest = max(profiles.values(), key=len)
    blocks = np.array([profile.block for profile in longest])
    panels[0].step(
        blocks,
        [p.uniform for p in longest],
        where="mid",
        color="black",
        linewidth=0.8,
        label="uniform: log of the keys",
    )
    for axes, label in zip(panels, ("entropy in nats", "distance in pixels"), strict=True):
        axes.set(xlabel="block", ylabel=label)
        bottom, top = axes.get_ylim()
        axes.set_ylim(min(bottom, 0.8 * top), top)  # small differences are to look small
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    return figure


def focus(
    query: Sequence[float] = QUERY,
    keys: Sequence[Sequence[float]] = KEYS,
    focusing_factors: Sequence[float] = (1, 3),
) -> Figure:
    """The focused map in two dimensions: the vectors for each power, and the scores that they give (paper, Fig. 4).

    Args:
        query: (2,), non-negative.
        keys: (K, 2) likewise.
        focusing_factors: a column for each; 1 leaves the vectors as they are.
    """
    figure = Figure(figsize=(3.3 * len(focusing_factors), 5.2), layout="constrained")
    above, below = figure.subplots(2, len(focusing_factors), height_ratios=(2, 1), squeeze=False)
    names = [f"k{i}" for i in range(1, len(keys) + 1)]
    side = 1.12 * max(np.linalg.norm(v) for v in (query, *keys))
    for arrows, bars, p in zip(above, below, focusing_factors, strict=True):
        vectors = np.asarray(focused_map(np.array((query, *keys), np.float32), p))
        lowest = np.argmin(vectors[:, 1] / vectors[:, 0])  # its name goes below, out of the others' way
        for i, (name, (x, y)) in enumerate(zip(("q", *names), vectors, strict=True)):
            color = "black" if name == "q" else LINES[1]["color"]
            arrow = dict(arrowstyle="-|>", color=color, linewidth=2.2 if name == "q" else 1.3, shrinkA=0, shrinkB=0)
            arrows.annotate("", (x, y), (0, 0), arrowprops=arrow)
            arrows.annotate(
                name, (x, y), (3, -11 if i == lowest else 3), textcoords="offset points", fontsize=10, color=color
            )
        arrows.set(xlim=(-0.1 * side, side), ylim=(-0.1 * side, side), aspect="equal", title=f"p = {p:g}")
        arrows.axhline(0, color="black", linewidth=0.6)
        arrows.axvline(0, color="black", linewidth=0.6)
        arrows.grid(alpha=0.3)
        scores = vectors[1:] @ vectors[0]
        scores = scores / scores.sum()
        drawn = bars.bar(names, scores, color=LINES[1]["color"], width=0.6)
        bars.bar_label(drawn, fmt="%.2f", fontsize=9)
        bars.set(ylim=(0, 1))
    below[0].set_ylabel("share of the score")
    return figure
