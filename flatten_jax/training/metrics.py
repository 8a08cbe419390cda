"""Where the numbers of a run go: `metrics.jsonl`, TensorBoard beside it, and the screen."""

import json
import os
import sys
from pathlib import Path

from absl import logging
from tensorboardX import SummaryWriter
from tqdm import tqdm


class MetricsWriter:
    """One JSON object a line in `metrics.jsonl` (`step` and the values), and the same to TensorBoard.

    Args:
        workdir: of the run.
        step: the step that the run goes on from. Lines after it, which a killed run wrote and this one will write
            again, are removed.
    """

    def __init__(self, workdir: Path, step: int):
        self._path = workdir / "metrics.jsonl"
        if self._path.exists():
            _truncate_after(self._path, step)
        self._tensorboard = SummaryWriter(str(workdir / "tensorboard"), purge_step=step + 1)
        self._failed = False

    def write(self, step: int, values: dict[str, float]) -> None:
        """Append a line. A full disk is said once and never stops the training."""
        try:
            with self._path.open("a") as file:
                file.write(json.dumps({"step": step, **values}) + "\n")
            for name, value in values.items():
                self._tensorboard.add_scalar(name, value, step)
        except OSError as error:
            if not self._failed:
                logging.warning("metrics cannot be written, the training goes on without: %s", error)
            self._failed = True

    def close(self) -> None:
        self._tensorboard.close()


def _truncate_after(path: Path, step: int) -> None:
    kept = [line for line in path.read_text().splitlines() if _step_of(line) <= step]
    temporary = path.with_suffix(".tmp")
    temporary.write_text("".join(line + "\n" for line in kept))
    os.replace(temporary, path)


def _step_of(line: str) -> float:
    """The step of a line; the half line of a run killed while writing counts as never reached."""
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError):
        return float("inf")


class Progress:
    """A bar on a terminal; elsewhere a line for each update, so that a log file stays readable."""

    def __init__(self, step: int, total_steps: int):
        self._total = total_steps
        self._bar = tqdm(total=total_steps, initial=step, unit="step", dynamic_ncols=True, disable=None)

    def update(self, step: int, values: dict[str, float], seconds_left: float) -> None:
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
        tqdm.write(text, file=sys.stdout)
        sys.stdout.flush()

    def close(self) -> None:
        self._bar.close()
