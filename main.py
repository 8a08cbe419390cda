"""Train or evaluate: python main.py --config configs/digits.py --workdir runs/digits"""

import sys

from absl import app, flags, logging
from ml_collections import config_flags

CONFIG = config_flags.DEFINE_config_file("config", None, "What to run, such as configs/digits.py.", lock_config=True)
WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run. What is there is resumed.")
MODE = flags.DEFINE_enum("mode", "train", ["train", "eval"], "Train (or resume), or evaluate a checkpoint.")
CHECKPOINT = flags.DEFINE_string(
    "checkpoint",
    None,
    "With --mode=eval: a run's folder or one of its checkpoints/<step>. Default: workdir.",
)
COORDINATOR = flags.DEFINE_string(
    "coordinator", None, "host:port of process 0. Cloud TPU and SLURM need no such flags."
)
NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "Of this run, on all hosts.", lower_bound=1)
PROCESS_ID = flags.DEFINE_integer("process_id", None, "Which of them this is.", lower_bound=0)
WAIT_SECONDS = flags.DEFINE_float("wait_seconds", 300, "How long to wait for other processes to start.")

NEXT = """What to try next:
  python main.py --config {config} --workdir {workdir} --mode=eval
  python main.py --config {config} --workdir {workdir}-2 --config.init_from={workdir}   # fine-tune from this run
  tensorboard --logdir {workdir}/tensorboard"""


def parse_flags(argv: list[str]) -> list[str]:
    """A typo or a wrong type in an override is one line, with the nearest name, instead of a traceback."""
    try:
        return app.parse_flags_with_usage(argv)
    except (AttributeError, TypeError, ValueError) as error:
        sys.exit(f"error in a flag: {error}")


def main(argv: list[str]) -> None:
    if argv[1:]:
        raise app.UsageError(f"unexpected arguments {argv[1:]}; overrides are written --config.x.y=value")
    if not flags.FLAGS["verbosity"].present:
        # Orbax and TFDS report every file at INFO, and Orbax warns of checkpoints without an evaluation.
        logging.set_verbosity(logging.WARNING)
        logging.get_absl_logger().addFilter(lambda record: "orbax" not in record.pathname)
    from flatten_jax import runtime  # after the flags: --help and typos need not wait for JAX
    from flatten_jax.training import agreement, loop, setup

    runtime.keep_freed_memory()
    try:
        agreement.join(COORDINATOR.value, NUM_PROCESSES.value, PROCESS_ID.value, WAIT_SECONDS.value)
        runtime.cache_compilations()
        run = setup.prepare(CONFIG.value)
        if MODE.value == "eval":
            loop.evaluate_checkpoint(run, CHECKPOINT.value or WORKDIR.value)
        else:
            loop.train(run, WORKDIR.value, wait_seconds=WAIT_SECONDS.value)
            if agreement.is_first():
                config = config_flags.get_config_filename(flags.FLAGS["config"])
                print(NEXT.format(config=config, workdir=WORKDIR.value))
    except loop.Preempted as signal:
        agreement.leave(signal.status)
    except KeyboardInterrupt:  # before there was anything to save
        sys.exit(130)
    except (ValueError, OSError, loop.TrainingDiverged) as error:
        if logging.level_debug():
            raise
        sys.exit(f"error: {error}\n(--verbosity=1 shows where)")


if __name__ == "__main__":
    flags.mark_flags_as_required(["config", "workdir"])
    app.run(main, flags_parser=parse_flags)
