"""The numbers of a run: measured, written to `metrics.jsonl` and TensorBoard, and shown on the screen."""

import collections
import json
import math
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
from absl import logging
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event
from tensorboardX.summary import scalar
from tqdm import tqdm

from flatten_jax import paths
from flatten_jax.training.outbox import Outbox
from flatten_jax.training.sharding import to_host
from flatten_jax.training.tracker import Tracker

# A step is reported that takes so many times the median of the last ones, and that many seconds at least.
SLOW_FACTOR, SLOW_SECONDS, SLOW_WINDOW = 10, 1.0, 100


class TrainingDiverged(RuntimeError):
    """A loss, gradient or update that is not finite."""


class Meter:
    """Metrics of steps, read one step late so that the device never waits for the host, and their rate.

    Args:
        batch_size: images of a step.
        may_skip: how many steps that are not finite pass before TrainingDiverged is raised.
    """

    def __init__(self, batch_size: int, may_skip: int = 0):
        self._batch_size, self._may_skip = batch_size, may_skip
        self._pending: tuple[int, dict[str, jax.Array]] | None = None
        self._losses: list[float] = []
        self._latest: dict[str, float] = {}
        self._replaced_images, self._skipped_steps = 0, 0
        self._seconds = math.nan  # of a step, on average
        self._durations: collections.deque[float] = collections.deque(maxlen=SLOW_WINDOW)
        self._steps, self._since, self._last = 0, math.nan, math.nan  # the first step's time is the compiler's

    def add(self, step: int, metrics: dict[str, jax.Array], replaced_images: int) -> None:
        """Note a step that was dispatched, and look at the one before."""
        self.collect()
        self._pending = step, metrics
        self._replaced_images += replaced_images

    def collect(self) -> None:
        """Wait for the newest step; TrainingDiverged where it is not finite and may not be skipped."""
        if self._pending is None:
            return
        step, metrics = self._pending
        self._pending = None
        values = {name: float(value) for name, value in to_host(metrics).items()}
        self._time(step)
        if all(math.isfinite(value) for value in values.values()):
            self._latest = values
            self._losses.append(values["loss"])
            return
        said = ", ".join(f"{name}={value:g}" for name, value in values.items())
        self._skipped_steps += 1
        if self._skipped_steps > self._may_skip:
            raise TrainingDiverged(
                f"step {step} is not finite: {said}. Nothing was saved since the last checkpoint; lower "
                "--config.optimizer.learning_rate or set --config.optimizer.clip_norm"
            )
        logging.warning(
            "step %d is not finite and was skipped (%d of at most %d): %s",
            *(step, self._skipped_steps, self._may_skip, said),
        )

    def _time(self, step: int) -> None:
        now = time.monotonic()
        if math.isnan(self._last):
            self.restart_clock()
            return
        seconds, self._last = now - self._last, now
        self._steps += 1
        median = statistics.median(self._durations) if len(self._durations) >= SLOW_WINDOW // 10 else math.inf
        if seconds > max(SLOW_FACTOR * median, SLOW_SECONDS):
            logging.warning("step %d took %.1f s, the median of the steps before is %.3f s", step, seconds, median)
        self._durations.append(seconds)

    def restart_clock(self) -> None:
        """Leave the time since the last `read` out of the rate."""
        self._since = self._last = time.monotonic()
        self._steps = 0

    def read(self) -> dict[str, float]:
        """Means since the last read, up to and including the newest step, which this waits for; {} if there is none."""
        self.collect()
        if self._steps:
            self._seconds = (time.monotonic() - self._since) / self._steps
        self.restart_clock()
        if not self._losses:
            return {}
        values = {
            "train/loss": sum(self._losses) / len(self._losses),
            **{f"train/{k}": self._latest[k] for k in ("learning_rate", "grad_norm", "update_norm")},
            "train/skipped_steps": float(self._skipped_steps),
            "perf/img_per_sec": self._batch_size / self._seconds if self._seconds > 0 else 0.0,
            "data/skipped": float(self._replaced_images),
        }
        self._losses = []
        return values

    def seconds_per_step(self) -> float:
        return self._seconds if self._seconds > 0 else 0.0


class MetricsWriter:
    """One JSON object a line in `metrics.jsonl` (`step` and the values), the same to TensorBoard and to a tracker.

    Only the first process writes. What cannot be written, on a full disk for instance, is said once and never stops
    the training. To a bucket the files are copied now and then, and by `send`.

    Args:
        workdir: of the run.
        step: the step that the run goes on from. Lines after it, which a killed run wrote and this one will write
            again, are removed.
        open_tracker: gives what else is told the numbers, see `tracker.Tracker`.
    """

    def __init__(self, workdir: Any, step: int, open_tracker: Callable[[], Tracker] | None = None):
        self._outbox = Outbox(workdir)
        self._path = self._outbox.place / "metrics.jsonl"
        self._enabled = jax.process_index() == 0
        self._told: set[str] = set()
        self._tensorboard: EventsWriter | None = None
        self._tracker: Tracker | None = None
        if self._enabled:
            self._try("metrics.jsonl", lambda: self._outbox.fetch(self._path.name))
            self._try("metrics.jsonl", lambda: _truncate_after(self._path, step))
            self._try("TensorBoard", lambda: self._open_tensorboard(self._outbox.place / "tensorboard", step))
            if open_tracker is not None:
                self._try("the tracker", lambda: setattr(self, "_tracker", open_tracker()))

    def write(self, step: int, values: dict[str, float]) -> None:
        if self._enabled and values:
            self._try("metrics.jsonl", lambda: self._append(json.dumps({"step": step, **values}) + "\n"))
            if self._tensorboard is not None:
                self._try("TensorBoard", lambda: self._add_events(step, values))
            if self._tracker is not None:
                self._try("the tracker", lambda: self._tracker.write(step, values))
            self.send(now=False)

    def send(self, *, now: bool = True) -> None:
        """See to it that a bucket has all numbers so far: before a checkpoint that a killed run goes on from."""
        if self._enabled:
            self._try("metrics.jsonl", lambda: self._outbox.send(now=now))

    def close(self) -> None:
        if self._tensorboard is not None:
            self._try("TensorBoard", self._tensorboard.close)
        if self._tracker is not None:
            self._try("the tracker", self._tracker.close)
        self.send()

    def _try(self, what: str, action) -> None:
        try:
            action()
        except Exception as error:  # of whatever library: no number is worth a run
            if what not in self._told:
                logging.warning("%s cannot be written, the training goes on without: %s", what, error)
            self._told.add(what)

    def _append(self, line: str) -> None:
        with self._path.open("a") as file:
            file.write(line)

    def _open_tensorboard(self, folder: Path, step: int) -> None:
        # Not SummaryWriter: it writes in a thread, whose errors nobody sees and whose full queue then blocks.
        folder.mkdir(exist_ok=True)
        self._tensorboard = EventsWriter(str(folder / "events"))
        start = Event(wall_time=time.time(), step=step + 1)
        start.session_log.status = 1  # START: points after this step, of a killed run, are not shown
        self._tensorboard.write_event(start)

    def _add_events(self, step: int, values: dict[str, float]) -> None:
        for name, value in values.items():
            self._tensorboard.write_event(Event(wall_time=time.time(), step=step, summary=scalar(name, value)))
        self._tensorboard.flush()


def _truncate_after(path: Path, step: int) -> None:
    if not path.exists():
        return
    kept = [line for line in path.read_text().splitlines() if _step_of(line) <= step]
    paths.write_text(path, "".join(line + "\n" for line in kept))


def _step_of(line: str) -> float:
    """The step of a line; the half line of a run killed while writing counts as never reached."""
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError):
        return float("inf")


class Progress:
    """A bar on a terminal; elsewhere a line for each update, so that a log file stays readable. First process only."""

    def __init__(self, step: int, total_steps: int):
        self._total = total_steps
        self._enabled = jax.process_index() == 0
        disable = None if self._enabled else True  # None: where there is no terminal
        self._bar = tqdm(total=total_steps, initial=step, unit="step", dynamic_ncols=True, disable=disable)

    def update(self, step: int, values: dict[str, float], seconds_left: float) -> None:
        if not self._enabled or not values:
            return
        text = (
            f"loss {values['train/loss']:.4f}  lr {values['train/learning_rate']:.2e}  "
            f"{values['perf/img_per_sec']:.0f} images/s"
        )
        if self._bar.disable:
            print(f"step {step}/{self._total}  {text}  {tqdm.format_interval(seconds_left)} left", flush=True)
        else:
            self._bar.set_postfix_str(text, refresh=False)
            self._bar.update(step - self._bar.n)

    def line(self, text: str) -> None:
        """A line that stays, above the bar."""
        if self._enabled:
            tqdm.write(text, file=sys.stdout)
            sys.stdout.flush()

    def close(self) -> None:
        self._bar.close()
