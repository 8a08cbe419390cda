"""Training curves of one or more runs, from their `metrics.jsonl`."""

import json
import os
from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from flatten_jax import paths
from flatten_jax.analysis.style import LINES

Records = Sequence[Mapping[str, float]]
# (title, whether the axis is logarithmic, the values in it: key -> what the legend adds to the run's name)
PANELS = (
    ("loss", False, {"train/loss": "training", "eval/loss": "evaluation"}),
    (
        "top-1 or mIoU in %",
        False,
        {
            f"eval{raw}/{name}": said
            for name in ("acc1", "miou")
            for raw, said in (("", ""), ("_raw", "without averaging"))
        },
    ),
    ("learning rate", False, {"train/learning_rate": ""}),
    ("norm of the gradient", True, {"train/grad_norm": ""}),
)


def read_metrics(run: str | os.PathLike) -> list[dict[str, float]]:
    """The records of a run, ascending in step.

    Args:
        run: its folder, or a metrics.jsonl. A half line at the end, of a run that was killed or still writes, is left
            out.

    Raises:
        FileNotFoundError, ValueError: no such file, or no records in it.
    """
    path = paths.path_of(run)
    path = path / "metrics.jsonl" if path.is_dir() else path
    if not path.exists():
        raise FileNotFoundError(f"{path} is not there: give the folder of a run")
    records = []
    lines = path.read_text().splitlines()
    for number, line in enumerate(lines, start=1):
        try:
            records.append(json.loads(line))
        except ValueError as error:
            if number < len(lines):
                raise ValueError(f"{path}, line {number} is not JSON: {line[:40]!r}") from error
    if not records:
        raise ValueError(f"{path} holds no records yet")
    return sorted(records, key=lambda record: record["step"])


def training_curves(runs: Mapping[str, Records]) -> Figure:
    """Loss, accuracy, learning rate and gradient norm over the steps.

    Args:
        runs: name -> records, as `read_metrics` gives them.
    """
    figure = Figure(figsize=(10, 6.5), layout="constrained")
    for axes, (title, logarithmic, keys) in zip(figure.subplots(2, 2, sharex=True).flat, PANELS, strict=True):
        for (name, records), style in zip(runs.items(), LINES * (len(runs) // len(LINES) + 1), strict=False):
            for key, said in keys.items():
                points = [(r["step"], r[key]) for r in records if key in r]
                if points:
                    marks = (
                        dict(marker="o", markersize=4, linewidth=1.7) if key.startswith("eval") else dict(linewidth=1)
                    )
                    label = ", ".join(filter(None, (name, said)))
                    axes.plot(*zip(*points, strict=True), **(style | marks), label=label)
        axes.set(ylabel=title)
        if logarithmic:
            axes.set_yscale("log")
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.yaxis.set_major_formatter("{x:g}")
            axes.yaxis.set_minor_formatter("")
        if axes.get_subplotspec().is_last_row():
            axes.set_xlabel("step")
        axes.grid(alpha=0.3)
        if axes.lines and (len(runs) > 1 or len(axes.lines) > 1):
            axes.legend(fontsize=8)
    if len(runs) == 1:
        figure.suptitle(next(iter(runs)))
    return figure


def draw_curves(runs: Sequence[str | os.PathLike], output: str | os.PathLike) -> None:
    """`training_curves` of runs' folders, to a picture file whose ending says the format; replaces `output`."""
    figure = training_curves({name: read_metrics(run) for name, run in _named(runs).items()})
    with paths.writing(output) as file:
        figure.savefig(file, dpi=120)


def _named(runs: Sequence[str | os.PathLike]) -> dict[str, str | os.PathLike]:
    """Each run by its folder's name, or by its path where two have the same name."""
    names = [paths.absolute(paths.path_of(run)).name for run in runs]
    return {name if names.count(name) == 1 else str(run): run for name, run in zip(names, runs, strict=True)}
