"""Speed of flatten_jax on a GPU beside the PyTorch release and softmax, for a machine that is lent by the minute.

    python tools/compare_on_gpu.py --release ~/FLatten-Transformer --output gpu.json

The contestants are those of compare_with_release.py, and the same models with softmax attention ("twin"). Everything is
built and compiled first, then nothing else runs, and the contestants of a row take turns. One process has all of JAX,
one the release as it is, and one for each model and dtype its compiled form: compiling for one GPU several things at a
time in JAX takes longer, since each kernel is tried out there. A call is timed with its dispatch, and with the wait for
its end.
"""

import argparse
import itertools
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import NamedTuple

import compare_with_release as release
import torch

from flatten_jax.bench import models, report, timing


class Row(NamedTuple):
    """What the contestants are timed at."""

    dtype: str
    kind: str
    model: str
    batch: int


_calls: dict[tuple[str, Row], Callable[[], object]] = {}  # of this process


def build(who: str, row: Row, args: argparse.Namespace) -> str:
    """Make a call of a contestant, run once; "" or what went wrong."""
    began = time.perf_counter()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    options = argparse.Namespace(**vars(args), device=device, dtype=row.dtype)
    try:
        if who == "twin":
            name, drop_path = row.model.removeprefix("flatten_"), release.drop_path(row.kind, row.model)
            call = models.make(row.kind, name, row.batch, dtype=row.dtype, drop_path=drop_path)
        else:
            call = release.contestant(who, row.kind, row.model, row.batch, options)
        call()
    except (Exception, SystemExit) as error:  # one that fails must not cost the others their time
        return f"{who}, {row}: {type(error).__name__}: {str(error).strip().splitlines()[:1]}"
    finally:
        torch.cuda.empty_cache()
    _calls[who, row] = call
    print(f"{who}, {row}: ready in {time.perf_counter() - began:.0f} s", flush=True)
    return ""


def build_all(wanted: Sequence[tuple[str, Row]], args: argparse.Namespace, until: float) -> list[str]:
    """Those of one process, begun before a time (of `time.time`); what went wrong."""
    release.import_release(args.release.expanduser())
    torch.set_float32_matmul_precision("high")  # TF32, as JAX does by default
    return [build(*one, args) if time.time() < until else f"{one} came too late" for one in wanted]


def ready() -> set[tuple[str, Row]]:
    return set(_calls)


def seconds(who: str, row: Row, at_least: float) -> float:
    """Of a call now."""
    try:
        return timing.interleaved({who: _calls[who, row]}, rounds=1, at_least=at_least)[who][0]
    finally:
        torch.cuda.empty_cache()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--release", type=Path, required=True, help="folder of the checkout")
    parser.add_argument("--models", nargs="+", default=list(release.RELEASE), choices=list(release.RELEASE))
    parser.add_argument("--dtypes", nargs="+", default=["bfloat16", "float32"])
    parser.add_argument("--kinds", nargs="+", default=["training", "inference"], choices=["training", "inference"])
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--at-least", type=float, default=0.2, help="seconds of a measurement")
    parser.add_argument("--patience", type=float, default=300, help="seconds after which nothing more is built")
    parser.add_argument("--output", type=Path, required=True, help="a JSON file to write, after each row")
    args = parser.parse_args()
    if args.output.exists():
        parser.error(f"{args.output} exists already: choose another --output")
    os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"  # the GPU's memory is for all processes
    os.environ["XLA_PYTHON_CLIENT_MEM_FRACTION"] = "0.6"
    rows = [Row(d, k, m, args.batch) for d, k, m in itertools.product(args.dtypes, args.kinds, args.models)]
    until = time.time() + args.patience

    homes: dict[tuple[str, Row], ProcessPoolExecutor] = {}
    jax_process, eager = release.process(), release.process()
    compiled = {(row.dtype, row.model): release.process() for row in rows}
    for row in rows:
        homes |= {("ours", row): jax_process, ("twin", row): jax_process, ("eager", row): eager}
        homes["compiled", row] = compiled[row.dtype, row.model]
    building = []
    for home in dict.fromkeys(homes.values()):
        wanted = [one for one, where in homes.items() if where is home]
        building.append(home.submit(build_all, wanted, args, until))
    for done in building:
        print(*filter(None, done.result()), sep="\n", flush=True)
    there = set().union(*(home.submit(ready).result() for home in dict.fromkeys(homes.values())))

    made_on = jax_process.submit(report.hardware).result() | {"torch": torch.__version__}
    measured = []
    for row in rows:
        contestants = [who for who in ("ours", "twin", "eager", "compiled") if (who, row) in there]
        took: dict[str, list[float]] = {who: [] for who in contestants}
        for _, who in itertools.product(range(args.rounds), contestants):
            took[who].append(homes[who, row].submit(seconds, who, row, args.at_least).result())
        line = {"kind": row.kind, "model": row.model, "dtype": row.dtype, "batch": row.batch}
        for who in contestants:
            line[f"{who}, images/s"] = timing.Spread.of([row.batch / s for s in took[who]])
        if "ours" in took:
            for who in contestants[1:]:
                line[f"x {who}"] = timing.ratios(took, who, "ours")
        measured.append(line)
        print(report.line(line), flush=True)
        report.write_json(args.output, [report.Result("on a GPU", measured, made_on)], overwrite=True)


if __name__ == "__main__":
    main()
