"""Commands that measure: `plan` what training will need elsewhere, `bench` what this machine does."""

import argparse
import os
import sys
from pathlib import Path
from typing import Any

from flatten_jax.cli.source import image_size


def add_plan(commands: Any) -> None:
    command = commands.add_parser(
        "plan",
        help="compile training steps for TPUs or GPUs that are not there: memory, operations, collectives",
        epilog="Further arguments override the configs: --config.train.batch_size=256 --config.model.dtype=bfloat16",
    )
    command.add_argument("--config", nargs="+", required=True, metavar="FILE", help="one or more, configs/x.py")
    topologies = "v5e:4x8, v4:2x2x2, ... (jax[tpu]), h100:8, a100:8, ... (jax[cuda13]), or cpu:8"
    command.add_argument("--topology", nargs="+", required=True, help=topologies)
    command.add_argument("--quick", action="store_true", help="memory only; on TPUs in a tenth of the time")
    command.add_argument("--roof", action="store_true", help="also the least time of each kind of operation, in tables")
    command.set_defaults(run=plan, takes_overrides=True, takes_buckets=("config",))


def plan(args: argparse.Namespace) -> None:
    # The compilers need no TPU or GPU: they must not look for one, say that it is missing, or keep others waiting.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "1")
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    import jax

    jax.config.update("jax_platforms", "cpu")
    virtual = [int(t[4:]) for t in args.topology if t.startswith("cpu:") and t[4:].isdecimal()]
    jax.config.update("jax_num_cpu_devices", max(virtual, default=1))
    from flatten_jax.bench import bundles, plan, roof
    from flatten_jax.cli.config_file import read_config
    from flatten_jax.distill.teacher import needs_teacher
    from flatten_jax.training import settings

    dump = bundles.dump_to() if args.roof else None
    taught, roofs = [], {}
    for topology in args.topology:  # before minutes of compiling
        plan.topology_devices(topology)
    print("compiling each step takes minutes", file=sys.stderr, flush=True)
    print(plan.HEADER, flush=True)
    for path in args.config:
        for topology in args.topology:
            config = read_config(path, args.overrides)
            config.data.name, config.data.folder, config.init_new_head = "synthetic", "", False  # neither is opened
            config = settings.checked(config)
            config.model.num_classes = config.model.num_classes or 1000  # there are no data to take it from
            if needs_teacher(config):  # which is not opened either
                config.distill.update(kind="none", weight=0.0, new_factor=1.0)
                taught.append(path)
            try:
                result = plan.plan(config, topology, args.quick, dump)
                print(plan.row(config, result), flush=True)
                roofs[f"{plan.called(config)}, {topology}"] = result.roof
            except ValueError as error:
                if len(args.config) * len(args.topology) == 1:
                    raise
                print(f"| {plan.called(config)} | {topology}: {error} |", flush=True)
    print(
        "\nPer chip and step. TFLOP counts 2 for a multiply-add; cycles are the compiler's own estimate, not a timing."
    )
    for name, parts in roofs.items():
        if parts:
            print("\n".join(["", f"{name}, per chip and step:", "", roof.HEADER, *roof.rows(parts)]))
    for path in dict.fromkeys(taught):
        print(f"{path}: without its teacher, whose weights and forward pass come on top.")


def add_bench(commands: Any) -> None:
    command = commands.add_parser("bench", help="measure speed, memory and compile time on this machine")
    kinds = ("all", "inference", "training", "attention", "memory", "input", "compile")
    command.add_argument("kinds", nargs="+", choices=kinds, metavar="KIND", help=", ".join(kinds))
    command.add_argument("--models", nargs="+", help="names, also upernet_NAME and semfpn_NAME (default: FLatten's)")
    command.add_argument("--batch", type=int, nargs="+", help="of inference (default 1 16)")
    command.add_argument("--train-batch", type=int, nargs="+", help="of training (default 8)")
    command.add_argument("--tokens", type=int, nargs="+", metavar="N", help="of attention (default 196 ... 16384)")
    command.add_argument(
        "--attentions", nargs="+", metavar="NAME", help="names, or all (default focused linear softmax)"
    )
    command.add_argument(
        "--core", action="store_true", default=None, help="of attention, what lies between projections"
    )
    command.add_argument("--attention-batch", type=int, help="of attention (default 1)")
    command.add_argument("--memory-limit", type=float, metavar="GIB", help="of attention (default: 60 %% of the free)")
    command.add_argument(
        "--image-size",
        type=int,
        nargs="+",
        metavar="PIXELS",
        help="of the models, where it is not their own: a side, or height and width",
    )
    command.add_argument("--dtype", choices=("float32", "bfloat16"), help="default: float32 on the CPU, else bfloat16")
    command.add_argument("--rounds", type=int, help="measurements of each timing (default 7)")
    command.add_argument("--output", metavar="FOLDER", help="to write bench.json and attention.png into")
    command.add_argument("--overwrite", action="store_true", help="replace them if they are there")
    command.set_defaults(run=bench)


def bench(args: argparse.Namespace) -> None:
    from flatten_jax import runtime
    from flatten_jax.bench import report, run

    runtime.device_per_core()
    runtime.keep_freed_memory()
    names = (
        "models",
        "batch",
        "train_batch",
        "tokens",
        "attentions",
        "core",
        "attention_batch",
        "memory_limit",
        "dtype",
        "rounds",
    )
    given = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    options = tuple(image_size(args).items())
    settings = run.Settings(**given, options=options)
    folder = Path(args.output) if args.output else None
    if folder:
        run.check_free(folder, args.overwrite)
    kinds = list(run.KINDS) if "all" in args.kinds else list(dict.fromkeys(args.kinds))
    results, written = [], []
    for result in run.run(kinds, settings, lambda line: print(line, file=sys.stderr, flush=True)):
        results.append(result)
        print(report.table(result), flush=True)
        if folder:  # after every kind, so that what fails later takes nothing with it
            written = run.write(results, folder, overwrite=True)
    for path in written:
        print(f"written: {path}")
