"""Train or evaluate: python main.py --config configs/digits.py --workdir runs/digits"""

import importlib.util
import itertools
import re
import shlex
import sys

from absl import app, flags, logging
from ml_collections import config_flags

CONFIG = config_flags.DEFINE_config_file(
    "config", None, "What to run, such as configs/digits.py. Default: the run's own, of --workdir.", lock_config=True
)
WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run. What is there is resumed.")
MODE = flags.DEFINE_enum(
    "mode",
    "train",
    ["train", "eval", "check"],
    "Train (or resume), evaluate a checkpoint by its run's own config, or check everything but the training: data, "
    "memory, time of a step.",
)
CHECKPOINT = flags.DEFINE_string(
    "checkpoint",
    None,
    "With --mode=eval: a run's folder or one of its checkpoints/<step>. Default: workdir.",
)
PROFILE = flags.DEFINE_string(
    "profile", None, "Steps to trace into workdir/profile for xprof or TensorBoard: first and last, such as 10-12."
)
COORDINATOR = flags.DEFINE_string(
    "coordinator", None, "host:port of process 0. Cloud TPU and SLURM need no such flags."
)
NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "Of this run, on all hosts.", lower_bound=1)
PROCESS_ID = flags.DEFINE_integer("process_id", None, "Which of them this is.", lower_bound=0)
WAIT_SECONDS = flags.DEFINE_float("wait_seconds", 300, "How long to wait for other processes to start.", 0)

SETTINGS = """Settings of a config are overridden by name: --config.train.batch_size=256 --config.model.dtype=bfloat16
  flatten-jax config {config}   # lists all, with type, value, range and meaning
"""


def parse_flags(argv: list[str]) -> list[str]:
    """A mistake is one line, with the nearest name, instead of a traceback; help is no mistake."""
    if {"--help", "-help", "-h", "--helpshort", "-?"} & set(argv):
        config = next(
            (match[1] for match in map(re.compile("--?config=(.+)").match, argv) if match), "configs/digits.py"
        )
        print(f"{__doc__}\n\n{SETTINGS.format(config=config)}\nFlags:{flags.FLAGS.main_module_help()}\n")
        print("Others are shown by --helpfull.")
        sys.exit(0)
    from flatten_jax.cli import config_file
    from flatten_jax.training import profile

    try:
        argv = sys.argv[:] = config_file.check_arguments(argv)  # where ml_collections looks for overrides
        rest = config_file.parse(flags.FLAGS, argv)
        if rest[1:]:
            raise ValueError(f"unexpected arguments {' '.join(rest[1:])}; overrides are written --config.x.y=value")
        if not WORKDIR.value and not (MODE.value == "check" or (MODE.value == "eval" and CHECKPOINT.value)):
            raise ValueError("where? There is no --workdir=FOLDER, for checkpoints and metrics")
        if PROFILE.value is not None:
            profile.parse(PROFILE.value)
            if MODE.value != "train":
                raise ValueError(f"--profile={PROFILE.value} is of the steps of a training, not of --mode={MODE.value}")
        return rest
    except (ValueError, OSError, ImportError) as error:
        sys.exit(f"error: {error}")


def next_steps(run) -> str:
    """Commands that work as they stand, in the folder where this one was started."""
    from flatten_jax import paths

    folder = WORKDIR.value.rstrip("/")
    another = next(path for number in itertools.count(2) if not paths.path_of(path := f"{folder}-{number}").exists())
    main, workdir = shlex.quote(sys.argv[0]), shlex.quote(folder)
    lines = [
        f"python {main} --workdir {workdir} --mode=eval",
        f"python {main} --workdir {shlex.quote(another)} --config.init_from={workdir}   # fine-tune from this run",
        f"flatten-jax curves {workdir} --output {workdir}/curves.png --overwrite",
    ]
    if hasattr(run.eval_source, "path"):
        command = "segment" if run.config.segmentation.head else "predict"
        lines.append(f"flatten-jax {command} --from {workdir} {shlex.quote(run.eval_source.path(0))}")
    if importlib.util.find_spec("tensorboard"):
        lines.append(f"tensorboard --logdir {workdir}/tensorboard")
    return "What to try next:" + "".join(f"\n  {line}" for line in lines)


def convert(config) -> None:
    """The stages of `flatten-jax linearize`, of a config that names an attention to convert to."""
    from flatten_jax.linearize import stages

    if MODE.value != "train" or PROFILE.value:
        raise ValueError(
            f"linearize.attention={config.linearize.attention!r} converts a model in stages, each a run in a folder of "
            f"{WORKDIR.value or '--workdir'}: --mode={MODE.value} and --profile are for one of those"
        )
    stages.run(config, WORKDIR.value, wait_seconds=WAIT_SECONDS.value)


def main(argv: list[str]) -> None:
    if not flags.FLAGS["verbosity"].present:
        # Orbax and TFDS report every file at INFO, and Orbax warns of checkpoints without an evaluation.
        logging.set_verbosity(logging.WARNING)
        logging.get_absl_logger().addFilter(lambda record: "orbax" not in record.pathname)
    import jax

    from flatten_jax import extras, runtime

    try:
        from flatten_jax.training import agreement, loop, profile, setup
    except ImportError as error:
        sys.exit(f"error: {extras.said(error)}")
    runtime.keep_freed_memory()
    config, given = CONFIG.value, config_flags.get_override_values(flags.FLAGS["config"])
    converts = bool(config.get("linearize", {}).get("attention"))
    if "data.name" in given and config.data.name == "folder" and "model.num_classes" not in given and not converts:
        config.model.num_classes = 0  # other data than the config speaks of: take it from them
    try:
        agreement.join(COORDINATOR.value, NUM_PROCESSES.value, PROCESS_ID.value, WAIT_SECONDS.value)
        runtime.cache_compilations()
        if converts:
            convert(config)
            return
        run = setup.prepare(config)
        if MODE.value == "eval":
            loop.evaluate_checkpoint(run, CHECKPOINT.value or WORKDIR.value)
        elif MODE.value == "check":
            loop.check(run)
        else:
            profiled = profile.parse(PROFILE.value) if PROFILE.value else None
            loop.train(run, WORKDIR.value, wait_seconds=WAIT_SECONDS.value, profiled=profiled)
            if agreement.is_first():
                print(next_steps(run))
    except loop.Preempted as signal:
        agreement.leave(signal.status)
    except KeyboardInterrupt:  # before there was anything to save
        sys.exit(130)
    except (ValueError, OSError, ImportError, loop.TrainingDiverged, jax.errors.JaxRuntimeError) as error:
        memory = "RESOURCE_EXHAUSTED" in str(error)
        if logging.level_debug() or (isinstance(error, jax.errors.JaxRuntimeError) and not memory):
            raise
        hint = "\nTry a smaller --config.train.batch_size, or --config.train.accumulation=4" if memory else ""
        sys.exit(f"error: {extras.said(error)}{hint}\n(--verbosity=1 shows where)")


if __name__ == "__main__":
    app.run(main, flags_parser=parse_flags)
