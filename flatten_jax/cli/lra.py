"""The command that makes Long Range Arena's sets: `lra`."""

import argparse
import time
from typing import Any


def add_lra(commands: Any) -> None:
    command = commands.add_parser(
        "lra", help="make Long Range Arena's sets: Pathfinder's pictures, ListOps's sequences"
    )
    tasks = command.add_subparsers(dest="task", required=True)
    pathfinder = tasks.add_parser("pathfinder", help="are the two marked ends those of one snake?")
    pathfinder.add_argument("--size", type=int, default=32, help="side in pixels: 32 (default), 64 or 128, Path-X")
    pathfinder.add_argument("--difficulty", default="hard", help="easy, middle or hard (default: the arena's)")
    listops = tasks.add_parser("listops", help="what do nested lists of operations come to?")
    for task, count in ((pathfinder, 20_000), (listops, 100_000)):
        task.add_argument("--count", type=int, default=count, help=f"examples of all splits (default {count:,})")
        task.add_argument("--seed", type=int, default=0, help="another seed makes another set (default 0)")
        task.add_argument("--out", required=True, metavar="DIR", help="a new folder, or one whose set is unfinished")
        task.add_argument("--workers", type=int, help="processes (default: one a core); the set is the same")
        task.set_defaults(run=lra)


def lra(args: argparse.Namespace) -> None:
    from tqdm import tqdm

    from flatten_jax import runtime
    from flatten_jax.lra.made import Made, write

    own = {"size": args.size, "difficulty": args.difficulty} if args.task == "pathfinder" else {}
    made = Made(args.task, args.count, args.seed, **own)
    began = time.monotonic()
    workers = runtime.cores() if args.workers is None else args.workers
    with tqdm(total=made.count, desc=args.task, unit=" examples", disable=None) as bar:
        for done in write(made, args.out, workers):
            bar.update(done - bar.n)
    print(f"{args.out}: {made.count:,} examples of {args.task}, in {time.monotonic() - began:.0f} s", flush=True)
    config = f"configs/lra_{args.task}.py" + (f":{args.size}" if own else "")
    print(f"train on them: python main.py --config {config} --config.data.folder={args.out} --workdir DIR")
