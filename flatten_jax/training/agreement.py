"""Processes that start together, and configs that agree: with those of the other processes, and of the run's folder."""

import contextlib
import json
import os
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import ml_collections
import numpy as np
from jax.experimental import multihost_utils

from flatten_jax import paths
from flatten_jax.training.lock import FolderInUseError
from flatten_jax.training.settings import SETTINGS, flat

CLASSES_FILE = "classes.json"  # in a run's folder: the name of every class, by label
MESSAGE_BYTES = 2**15  # room for a config in the one exchange before all others, whose size has to be agreed
# What may differ between hosts, and what between a run and its resumption: none of it changes what is computed.
# A teacher is known by the fingerprint of its weights, wherever they lie.
_OF_A_HOST = ("data.workers", "data.data_dir", "data.folder", "data.cache_dir", "distill.teacher")
_OF_A_SESSION = (
    *_OF_A_HOST,
    "log_every_steps",
    "eval.",
    "checkpoint.",
    "init_",
    "mesh.",
    "train.skip_nonfinite_steps",
    "train.tpu_kernels",
    "tracker.",
)


def join(coordinator: str | None, num_processes: int | None, process_id: int | None, wait_seconds: float) -> None:
    """Make this process one of several; to be called before anything touches a device.

    Without arguments Cloud TPU, SLURM and the like say what JAX needs to know; where there is nothing of that kind,
    this process is the only one.

    Args:
        coordinator: host:port of process 0.
        wait_seconds: after a tenth of it a line says what is waited for, after all of it this process exits.
    """
    given = {"--coordinator": coordinator, "--num_processes": num_processes, "--process_id": process_id}
    missing = [flag for flag, value in given.items() if value is None]
    if 0 < len(missing) < len(given):
        raise ValueError(f"of {', '.join(given)} there is no {' and no '.join(missing)}: give all three or none")
    if not missing and not 0 <= process_id < num_processes:
        raise ValueError(f"--process_id={process_id} is not one of 0 ... {num_processes - 1} (--num_processes)")
    if num_processes == 1:
        return
    whom = f"all {num_processes} processes at {coordinator}" if coordinator else "the other processes of this job"
    with waiting(f"{whom} to start", wait_seconds):
        try:  # JAX's own time limit aborts without a clear word: it has to be the longer one
            jax.distributed.initialize(coordinator, num_processes, process_id, initialization_timeout=10**6)
        except ValueError as error:
            if missing and "coordinator_address" in str(error):
                return  # no cluster that JAX knows
            raise


def is_first() -> bool:
    """Whether this process is the one that prints and writes."""
    return jax.process_index() == 0


def leave(status: int) -> None:
    """End this process without waiting for its threads: a compilation may be under way in one."""
    if jax.distributed.is_initialized():
        jax.distributed.shutdown()  # all leave together; to the others, one that is just gone has crashed
    sys.stdout.flush()
    os._exit(status)


@contextlib.contextmanager
def waiting(what: str, wait_seconds: float) -> Iterator[None]:
    """Say that this process waits for others after a tenth of `wait_seconds`; exit with status 1 after all of it."""

    def give_up() -> None:
        print(f"error: waited {wait_seconds:g} s for {what}, in vain: are they running?", file=sys.stderr, flush=True)
        os._exit(1)  # the main thread waits inside of JAX, where no exception reaches it

    def remind() -> None:
        print(f"waiting for {what}, for {wait_seconds / 10:g} s so far", file=sys.stderr, flush=True)

    timers = [threading.Timer(wait_seconds / 10, remind), threading.Timer(wait_seconds, give_up)]
    for timer in timers:
        timer.daemon = True
        timer.start()
    try:
        yield
    finally:
        for timer in timers:
            timer.cancel()


def check_same_everywhere(config: ml_collections.ConfigDict, facts: Mapping[str, Any], wait_seconds: float) -> None:
    """Compare the config and other facts with those of the first process, before anything can wait for ever.

    Raises:
        ValueError: in every process, with what differs and where.
    """
    if jax.process_count() == 1:
        return
    ours = {name: v for name, v in flat(_plain(config)).items() if not name.startswith(_OF_A_HOST)} | dict(facts)
    text = json.dumps(ours).encode()
    if len(text) > MESSAGE_BYTES:
        raise ValueError(f"the config takes {len(text)} bytes of JSON, more than {MESSAGE_BYTES=}")
    message = np.frombuffer(text.ljust(MESSAGE_BYTES), np.uint8)
    with waiting("the other processes to have read their data", wait_seconds):
        everyone = [json.loads(bytes(row)) for row in multihost_utils.process_allgather(message)]
    first = everyone[0]
    lines = [
        f"\n  {name}: {first.get(name)} in process 0, {theirs.get(name)} in process {index}"
        for index, theirs in enumerate(everyone)
        for name in sorted(first.keys() | theirs.keys())
        if first.get(name) != theirs.get(name)
    ]
    if lines:
        raise ValueError(f"the processes of this run do not agree:{''.join(lines)}\nStart all with the same command.")


def refuse_if_taken(folder: Any, by: str, wait_seconds: float) -> None:
    """FolderInUseError in every process where the first one was told that another run has the folder."""
    taken = bool(by)
    if jax.process_count() > 1:
        with waiting("the other processes to have read their data", wait_seconds):
            taken = bool(multihost_utils.broadcast_one_to_all(np.array(taken)))
    if taken:
        raise FolderInUseError(
            f"{folder} is in use by {by or 'another run'}: end that one first, or take another --workdir"
        )


def claim(folder: Any, config: ml_collections.ConfigDict, class_names: Sequence[str]) -> None:
    """Save the config and the names of the classes with the run, or compare them with those that are there.

    Raises:
        ValueError: the run in `folder` has another config, or other classes; lists what differs.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "config.json"
    ours = _plain(config)
    if path.exists() and _has_steps(folder):
        theirs = _read(path)
        before = {key: s.before for key, s in SETTINGS.items() if s.before is not None}
        trees = [json.loads(json.dumps(before)) | flat(theirs), flat(ours)]
        names = sorted(name for name in trees[0].keys() | trees[1].keys() if not name.startswith(_OF_A_SESSION))
        changed = [n for n in names if trees[0].get(n) != trees[1].get(n)]
        if changed:
            lines = "".join(f"\n  {n}: {trees[0].get(n)} there, {trees[1].get(n)} now" for n in changed)
            raise ValueError(
                f"{folder} holds a run of another config:{lines}\n"
                "Take another --workdir (and --config.init_from to go on from its weights), or the old values: without "
                "--config the run goes on with its own."
            )
    classes = folder / CLASSES_FILE
    known = _read(classes) if classes.exists() and _has_steps(folder) else list(class_names)
    if known != list(class_names):
        only = [sorted(set(a) - set(b))[:5] for a, b in ((known, class_names), (class_names, known))]
        raise ValueError(
            f"{folder} holds a run of other classes ({len(known)} there, {len(class_names)} in the data now): "
            f"only there {only[0]}, only now {only[1]}; take another --workdir, or the data it was started with"
        )
    if jax.process_index() == 0:
        for target, content in ((path, ours), (classes, list(class_names))):
            paths.write_text(target, json.dumps(content, indent=2) + "\n")


def _read(path: Any) -> Any:
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error}): restore it, or take another --workdir") from error


def _has_steps(folder: Any) -> bool:
    """Whether a run got as far as anything that could be lost: a checkpoint, or a line of its metrics.

    Of a conversion (`linearize`) the first stage is the swap, a run in a folder of its own.
    """
    metrics = folder / "metrics.jsonl"
    saved = (folder / place / "checkpoints" for place in ("", "swap"))
    return (metrics.exists() and bool(metrics.read_bytes())) or any(any(of.glob("[0-9]*")) for of in saved)


def _plain(config: ml_collections.ConfigDict) -> dict[str, Any]:
    return json.loads(config.to_json_best_effort())
