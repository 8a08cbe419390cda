"""A trace of some steps of a run, for xprof and TensorBoard."""

import re
from collections.abc import Callable, Iterator
from typing import Any

import jax
from absl import logging
from tqdm import tqdm

from flatten_jax.training.outbox import Outbox

Steps = tuple[int, int]  # the first and the last one to trace


def parse(text: str) -> Steps:
    """ "10-12", or "10" for that alone; ValueError says what it may be."""
    match = re.fullmatch(r"([0-9]+)(?:-([0-9]+))?", text.strip())
    first, last = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
    if not 1 <= first <= last:
        raise ValueError(f"--profile={text} must be the first and the last step to trace, from 1 on, such as 10-12")
    return first, last


def check(wanted: Steps | None, start: int, total: int) -> None:
    """ValueError unless a run that goes on after step `start` of `total` takes all steps that are wanted."""
    if wanted is None or start < wanted[0] <= wanted[1] <= total:
        return
    left = f"has steps {start + 1} to {total} before it" if start < total else f"is finished, after step {total}"
    raise ValueError(f"--profile={wanted[0]}-{wanted[1]} is not of this run, which {left}")


def traced(steps: range, wanted: Steps | None, folder: Any, wait: Callable[[], None]) -> Iterator[int]:
    """`steps`; the first process traces those wanted, each from its batch to its evaluation.

    To be closed, which ends the trace. What cannot be written is said and never stops the training.

    Args:
        folder: to write to, beside older traces.
        wait: for what is still being computed.
    """
    if wanted is None or jax.process_index():
        yield from steps
        return
    (first, last), running, outbox = wanted, False, Outbox(folder)

    def stop() -> None:
        jax.profiler.stop_trace()
        outbox.send()

    def attempt(action: Callable[[], None]) -> bool:
        try:
            action()
        except Exception as error:  # of whatever kind: no trace is worth a run
            logging.warning("%s cannot be written, the training goes on without: %s", folder, error)
            return False
        return True

    try:
        for step in steps:
            if step == first:
                wait()
                running = attempt(lambda: jax.profiler.start_trace(outbox.place))
            if not running:
                yield step
                continue
            with jax.profiler.StepTraceAnnotation("train", step_num=step):
                yield step
                if step == last:
                    wait()
            if step == last:
                running = False
                if attempt(stop):
                    how = f"xprof --logdir={folder}   # pip install xprof"
                    tqdm.write(f"steps {first} to {last} are traced: {how}")
    finally:
        if running:
            attempt(stop)
