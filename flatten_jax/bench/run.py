"""The measurements of `flatten-jax bench`, one function a kind, and the files they are written to."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax

from flatten_jax.attention import attention_class, list_attentions
from flatten_jax.bench import attention, figures, input_pipeline, models, report, timing
from flatten_jax.counted import counted
from flatten_jax.models import model_options
from flatten_jax.models.stack import REMAT_POLICIES
from flatten_jax.segmentation.create import split

# Each with softmax instead, to be added with --models: deit_t, pvt_t, ...
MODELS = ("flatten_deit_t", "flatten_pvt_t", "flatten_pvt_v2_b1", "flatten_swin_t", "flatten_cswin_t")
FILES = ("bench.json", "attention.png")

Row = dict[str, Any]


@dataclass(frozen=True)
class Settings:
    """What is measured.

    Attributes:
        models: names, of segmenters with the head before, "upernet_flatten_swin_t".
        batch, train_batch: batch sizes of inference and of training; `memory` and `compile` take the first of each.
        dtype: of the computation; None: bfloat16 on accelerators, float32 on the CPU.
        rounds: measurements of each timing.
        tokens, attention_batch: of the attention sweep.
        attentions: names for the sweep, or "all".
        core: the sweep without the projections.
        memory_limit: GiB that one of its layers may need; None: 60 % of what is free.
        options: of the models, for all.
    """

    models: Sequence[str] = MODELS
    batch: Sequence[int] = (1, 16)
    train_batch: Sequence[int] = (8,)
    dtype: str | None = None
    rounds: int = 7
    tokens: Sequence[int] = attention.TOKENS
    attention_batch: int = 1
    attentions: Sequence[str] = attention.ATTENTIONS
    core: bool = False
    memory_limit: float | None = None
    options: tuple[tuple[str, Any], ...] = ()

    def __post_init__(self) -> None:
        if min(self.rounds, self.attention_batch, *self.batch, *self.train_batch) < 1:
            raise ValueError("rounds and batch sizes have to be at least 1")
        # A mistake is to be known before the first measurement.
        for name in self.models:
            model_options(split(name)[1])
        for n in self.tokens:
            attention.side(n)
        for name in self.swept():
            attention_class(name)

    def swept(self) -> Sequence[str]:
        return list_attentions() if tuple(self.attentions) == ("all",) else self.attentions

    def computed_in(self) -> str:
        return self.dtype or ("float32" if jax.default_backend() == "cpu" else "bfloat16")

    def of_models(self) -> dict[str, Any]:
        return {"dtype": self.computed_in(), **dict(self.options)}


def _speed(kind: str, settings: Settings) -> Iterator[Row]:
    """Images per second, the models in turn; beside a model's softmax twin how many times as fast it is."""
    for batch_size in settings.batch if kind == "inference" else settings.train_batch:
        calls = {name: models.make(kind, name, batch_size, **settings.of_models()) for name in settings.models}
        seconds = timing.interleaved(calls, rounds=settings.rounds)
        for name, took in seconds.items():
            row: Row = {"model": name, "batch": batch_size, "dtype": settings.computed_in()}
            row["images/s"] = timing.Spread.of([batch_size / s for s in took])
            twin = name.replace("flatten_", "", 1)
            if twin != name and twin in seconds:
                row["x softmax twin"] = timing.ratios(seconds, twin, name)
            yield row


def _memory(settings: Settings) -> Iterator[Row]:
    remat = ({"remat": True, "remat_policy": policy} for policy in REMAT_POLICIES)
    for name, inference, training in _costs(settings, ({}, {"scan": True}), ({}, *remat, {"scan": True})):
        kept = (f"training, remat, {policy} kept" for policy in REMAT_POLICIES)
        columns = ("inference", "inference, scan", "training", *kept, "training, scan")
        yield name | {f"{c} MiB": x.bytes / 2**20 for c, x in zip(columns, (*inference, *training), strict=True)}


def _compile(settings: Settings) -> Iterator[Row]:
    for name, inference, training in _costs(settings, ({}, {"scan": True}), ({}, {"scan": True})):
        columns = ("inference", "inference, scan", "training", "training, scan")
        yield name | {f"{c} s": x.compile_seconds for c, x in zip(columns, (*inference, *training), strict=True)}


def _costs(
    settings: Settings, inference: Sequence[dict[str, bool]], training: Sequence[dict[str, bool]]
) -> Iterator[tuple[Row, list[models.Costs], list[models.Costs]]]:
    batch, train_batch = settings.batch[0], settings.train_batch[0]
    for name in settings.models:
        row = {"model": name, "batch": batch, "training batch": train_batch, "dtype": settings.computed_in()}
        options = settings.of_models()
        yield (
            row,
            [models.costs("inference", name, batch, **options, **extra) for extra in inference],
            [models.costs("training", name, train_batch, **options, **extra) for extra in training],
        )


def _attention(settings: Settings) -> Iterator[Row]:
    return attention.sweep(
        tokens=settings.tokens,
        batch_size=settings.attention_batch,
        dtype=settings.computed_in(),
        rounds=settings.rounds,
        attentions=settings.swept(),
        core=settings.core,
        memory_limit=None if settings.memory_limit is None else settings.memory_limit * 2**30,
    )


# Kind -> (title of its table, rows as they are measured). In this order "all" measures them.
KINDS: dict[str, tuple[str, Callable[[Settings], Iterator[Row]]]] = {
    "inference": ("inference", lambda settings: _speed("inference", settings)),
    "training": ("training step", lambda settings: _speed("training", settings)),
    "attention": (f"one layer of attention, C = {attention.CHANNELS}, h = {attention.HEADS}", _attention),
    "memory": ("memory by XLA's count: parameters, optimizer, inputs, results and temporaries", _memory),
    "input": ("input pipeline", lambda settings: iter(input_pipeline.measure(repeats=settings.rounds))),
    "compile": ("compile time, tracing and XLA", _compile),
}


def run(kinds: Sequence[str], settings: Settings, say: Callable[[str], None] = print) -> Iterator[report.Result]:
    """The results of kinds of `KINDS`, each row said as it comes. After the rows of attention comes their summary."""
    for kind in kinds:
        title, measure = KINDS[kind]
        rows = []
        for row in measure(settings):
            rows.append(row)
            say(f"{kind}: {report.line(row)}")
        yield report.Result(title, rows)
        if kind == "attention":
            yield report.Result("attention of linear cost beside softmax", attention.summary(rows))


def check_free(folder: Path, overwrite: bool) -> None:
    """FileExistsError if `write` would replace a file, to be known before hours of measuring."""
    for name in FILES:
        if (folder / name).exists() and not overwrite:
            raise FileExistsError(f"{folder / name} exists already: choose another folder, or --overwrite")


def write(results: Sequence[report.Result], folder: Path, overwrite: bool = False) -> list[Path]:
    """bench.json, and attention.png if attention was measured; the paths of what was written."""
    check_free(folder, overwrite)
    data, picture = (folder / name for name in FILES)
    report.write_json(data, list(results), overwrite)
    for result in results:
        if result.title == KINDS["attention"][0]:
            first, made_on = result.rows[0], result.made_on
            title = f"{result.title}, batch {first['batch']}, {first['dtype']}; {made_on['device']}"
            title += f" ({counted(made_on['cores'], 'core')} of {made_on['processor']}), JAX {made_on['jax']}"
            figures.attention_curves(result.rows, title).savefig(picture, dpi=120)
            return [data, picture]
    return [data]
