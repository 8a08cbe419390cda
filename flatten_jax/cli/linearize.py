"""The command that gives a trained model another attention: `linearize`."""

import argparse
import re
from typing import Any

from flatten_jax.cli.source import SOURCE


def add_linearize(commands: Any) -> None:
    command = commands.add_parser(
        "linearize",
        help="give a trained model another attention, and train it to be as good as it was",
        epilog="Further arguments override settings: --config.train.epochs=5 --config.linearize.align_epochs=2",
    )
    command.add_argument("--from", dest="source", required=True, metavar="TEACHER", help=SOURCE)
    command.add_argument("--model", default="", help="name of its model, where the weights do not say it")
    command.add_argument("--attention", help="a name, or a pattern of names; one for each stage with commas")
    command.add_argument("--workdir", required=True, help="folder for the stages; what is there is gone on with")
    command.add_argument("--keep", help="numbers of blocks that keep their attention, such as 7,11")
    command.add_argument("--copy", help="which weights are taken: all, mlp, attention or none")
    command.add_argument("--stages", help="after the swap: of align, features, train, with commas")
    command.add_argument("--search", type=int, metavar="K", help="how many blocks get their attention back")
    command.add_argument(
        "--config",
        metavar="FILE",
        help="data and recipe; default: those of the teacher's run, with a tenth of its epochs",
    )
    command.set_defaults(run=linearize, takes_overrides=True)


def linearize(args: argparse.Namespace) -> None:
    import sys

    from flatten_jax import runtime
    from flatten_jax.linearize import stages
    from flatten_jax.training import agreement, loop

    runtime.keep_freed_memory()
    config = config_of(args)
    runtime.cache_compilations()
    try:
        stages.run(config, args.workdir)
    except loop.Preempted as signal:
        agreement.leave(signal.status)
    except KeyboardInterrupt:
        sys.exit(130)
    except loop.TrainingDiverged as error:
        raise ValueError(str(error)) from error


def config_of(args: argparse.Namespace) -> Any:
    """The config of a conversion: a file's or the teacher's run's, the overrides, and what the arguments say.

    Of the model only what is overridden counts: all else is the teacher's.
    """
    from flatten_jax.cli import config_file
    from flatten_jax.training import run_config

    path = args.config
    if path is None:
        if run_config.find_config(args.source) is None or not run_config.is_run(args.source):
            raise ValueError(
                f"--from {args.source} is no run, whose data could be taken: add --config configs/linearize.py, with "
                "--config.data.name=folder --config.data.folder=PATH or other data"
            )
        path = f"{run_config.__file__}:{args.source},linearize"
    config = config_file.read_config(path, args.overrides)
    chosen = {match[1] for match in map(re.compile(r"--?(?:no)?config\.model\.([^=]+)").match, args.overrides) if match}
    run_config.blank(config.model, chosen | run_config.OF_USE)
    config.distill.update(teacher=args.source, teacher_model=args.model)
    given = {key: getattr(args, key) for key in ("attention", "keep", "copy", "stages", "search")}
    config.linearize.update({key: value for key, value in given.items() if value is not None})
    if not config.linearize.attention:
        raise ValueError("--attention is missing: one of `flatten-jax attentions`, or one for each stage with commas")
    return config
