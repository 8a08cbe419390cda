"""The command that sets all attentions side by side: `compare costs`, `compare run`, `compare page`."""

import argparse
import os
import sys
from pathlib import Path
from typing import Any


def add_compare(commands: Any) -> None:
    command = commands.add_parser("compare", help="all attentions side by side: what each costs, and what it learns")
    kinds = command.add_subparsers(dest="kind", required=True)

    costs = kinds.add_parser("costs", help="time, memory, size and compile time of a layer; nothing is trained")
    costs.add_argument("--out", required=True, metavar="DIR", help="for costs.json; what is measured is kept")
    costs.add_argument("--attentions", nargs="+", default=["all"], metavar="NAME", help="names, or all (default)")
    costs.add_argument("--full", action="store_true", help="both widths and both dtypes at every N")
    costs.add_argument("--tokens", type=int, nargs="+", metavar="N", help="only these of the grid's, or others")
    costs.add_argument("--dtype", choices=("float32", "bfloat16"), help="only this one")
    costs.add_argument(
        "--batch-tokens",
        type=int,
        default=1,
        metavar="T",
        help="so many images at a time that they have about T tokens together (default: one image), to fill a GPU",
    )
    costs.add_argument("--rounds", type=int, default=3, help="in which all take turns (default 3)")
    costs.add_argument(
        "--limit",
        type=float,
        default=2.0,
        metavar="SECONDS",
        help="of a call (default 2); beyond, a case is left out, by what it took at the N before",
    )
    costs.add_argument("--memory-limit", type=float, metavar="GIB", help="of a case (default: 60 %% of the free)")
    costs.add_argument(
        "--topology",
        nargs="+",
        default=[],
        metavar="NAME",
        help="time nothing, compile for one chip of these: v5e:2x2 (jax[tpu]), h100:1 (jax[cuda13])",
    )
    costs.set_defaults(run=compare_costs)

    run = kinds.add_parser(
        "run",
        help="train a preset's host with every attention and seed; finished runs are skipped, killed ones go on",
        epilog="Further arguments override the preset: --config.data.folder=PATH --config.model.dtype=bfloat16. "
        "Several machines may be given the same --out.",
    )
    run.add_argument("--preset", required=True, help="digits, cifar10-small, cifar10-256, cifar10-deit_t, ...")
    run.add_argument("--out", required=True, metavar="DIR", help="for the runs, a folder each")
    run.add_argument(
        "--attentions",
        nargs="+",
        default=["all"],
        metavar="NAME",
        help="names, with spaces or commas "
        "between, name[option=value] for options of one; or all (default). softmax is always there",
    )
    run.add_argument("--seeds", type=int, default=3, help="how many, from 0 (default 3)")
    run.add_argument(
        "--learning-rates",
        choices=("softmax", "best"),
        default="softmax",
        help="softmax: the one that is "
        "best for it, for all (default); best: each attention's own best of three, besides",
    )
    run.add_argument(
        "--patterns",
        nargs="+",
        default=[],
        metavar="PLACE",
        help="hybrids with softmax, of every "
        "attention besides itself: evenly:2, first:1, last:1, late-middle, alternating, 3:1, LLLS",
    )
    run.set_defaults(run=compare_run, takes_overrides=True)

    page = kinds.add_parser("page", help="write tables, pictures and JSON of what is in the folders")
    page.add_argument(
        "sources",
        nargs="+",
        metavar="DIR",
        help="--out of costs and run, or the .json of an earlier page, to which the others are added",
    )
    page.add_argument("--output", required=True, metavar="FILE", help="a .md; JSON and pictures go beside it")
    page.add_argument("--overwrite", action="store_true", help="replace them if they are there")
    page.set_defaults(run=compare_page)


def compare_costs(args: argparse.Namespace) -> None:
    if args.topology:  # as `plan`: the compilers need no TPU or GPU, and must not look for one
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "1")
        os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
        os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
        import jax

        jax.config.update("jax_platforms", "cpu")
    from flatten_jax import runtime
    from flatten_jax.compare import costs

    runtime.keep_freed_memory()
    attentions = _listed(args.attentions)
    if args.batch_tokens < 1:
        raise ValueError(f"--batch-tokens {args.batch_tokens} must be at least 1")
    for topology in args.topology:
        costs.compile_elsewhere(Path(args.out), attentions, topology, args.batch_tokens, _say)
    if not args.topology:
        grid = costs.grid(args.full, args.tokens, args.dtype, args.batch_tokens)
        limits = dict(seconds=args.limit, memory=None if args.memory_limit is None else args.memory_limit * 2**30)
        costs.measure(Path(args.out), attentions, grid, rounds=args.rounds, say=_say, **limits)


def compare_run(args: argparse.Namespace) -> None:
    from absl import logging

    from flatten_jax import runtime
    from flatten_jax.cli.config_file import read_config
    from flatten_jax.compare import presets, runner
    from flatten_jax.counted import counted
    from flatten_jax.training import agreement, loop

    if args.seeds < 1:
        raise ValueError(f"--seeds {args.seeds} must be at least 1")
    preset = presets.find(args.preset)
    if not Path(preset.config.partition(":")[0]).is_file():
        raise ValueError(
            f"--preset {args.preset} is main.py with {preset.config}: start it in the folder that has both"
        )
    attentions = runner.all_attentions() if args.attentions == ["all"] else _listed(args.attentions)
    # As main.py: Orbax and TFDS report every file at INFO.
    logging.set_verbosity(logging.WARNING)
    logging.get_absl_logger().addFilter(lambda record: "orbax" not in record.pathname)
    runtime.keep_freed_memory()
    runtime.cache_compilations()
    try:
        comparison = runner.Comparison(args.preset, preset, Path(args.out), read_config, args.overrides, _say)
        left = comparison.run(attentions, args.seeds, args.patterns, args.learning_rates == "best")
    except loop.Preempted as signal:
        print("stopped; the same command goes on from here", file=sys.stderr)
        agreement.leave(signal.status)
    except KeyboardInterrupt:
        sys.exit(130)
    done = f"{counted(left, 'run')} left to others" if left else "all runs are done"
    print(f"{done}. Next: flatten-jax compare page {args.out} --output comparison.md")


def compare_page(args: argparse.Namespace) -> None:
    from flatten_jax.compare import page

    for path in page.write([Path(source) for source in args.sources], Path(args.output), args.overwrite):
        print(f"written: {path}")


def _listed(names: list[str]) -> list[str]:
    """Names that stand apart, or have commas between; commas inside of brackets are an attention's own."""
    import re

    from flatten_jax.attention import list_attentions

    found = [name for entry in names for name in re.split(r",(?![^\[]*\])", entry) if name]
    return list_attentions() if found == ["all"] else found


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
