"""The training loop: batch, step, evaluate, save, always in this order, so that a resumed run is step-exact."""

import json
import math
import time
from pathlib import Path
from typing import Any

import jax
import ml_collections

from flatten_jax.training.checkpoint import Checkpoints, load_weights
from flatten_jax.training.evaluate import evaluate, make_eval_step
from flatten_jax.training.metrics import MetricsWriter, Progress
from flatten_jax.training.setup import Run
from flatten_jax.training.sharding import replicated, to_host
from flatten_jax.training.step import TrainState, abstract_state, init_state, make_train_step


class TrainingDiverged(RuntimeError):
    """A loss or gradient that is not finite."""


def train(run: Run, workdir: str) -> None:
    """Train to the end, from wherever the run in `workdir` stands.

    Writes `config.json`, `metrics.jsonl`, `tensorboard/` and `checkpoints/<step>/` there.
    """
    folder = Path(workdir)
    _claim(folder, run.config)
    checkpoints = Checkpoints(folder / "checkpoints", keep=run.config.checkpoint.keep)
    done = max(checkpoints.steps(), default=0)
    if done >= run.total_steps:
        print(f"{folder} holds a finished run of {done} steps.\n{_results(checkpoints, folder)}")
        return

    state, said = _start(run, checkpoints)
    start = int(state.step)
    _describe(run, state, said)
    writer, progress = MetricsWriter(folder, start), Progress(start, run.total_steps)
    meter = Meter(run.config.train.batch_size)
    train_step = make_train_step(run.model, run.optimizer, run.schedule, run.config, run.mesh)
    eval_step = make_eval_step(run.model, run.mesh)
    every = {kind: run.in_steps(run.config[kind].every_epochs) for kind in ("eval", "checkpoint")}
    batches = run.train_batches(start)
    began = time.monotonic()
    try:
        for step in range(start + 1, run.total_steps + 1):
            batch, skipped = next(batches)
            state, metrics = train_step(state, batch)
            meter.add(step, metrics, skipped)  # looks at the step before, while this one computes

            last = step == run.total_steps
            due = {kind: last or step % interval == 0 for kind, interval in every.items()}
            if step % run.config.log_every_steps == 0 or any(due.values()):
                values = meter.read()
                writer.write(step, values)
                progress.update(step, values, meter.seconds_per_step() * (run.total_steps - step))
            result = None
            if due["eval"]:
                result = _evaluate(run, eval_step, state.params, state.ema)
                writer.write(step, result)
                progress.line(f"step {step} (epoch {step / run.steps_per_epoch:.1f}): {_say(result)}")
            if due["checkpoint"]:
                checkpoints.save(state, run.position(step), result)
            if any(due.values()):
                meter.restart_clock()
        checkpoints.wait()
    finally:
        batches.close()
        progress.close()
        writer.close()
    minutes, seconds = divmod(round(time.monotonic() - began), 60)
    print(f"finished {run.total_steps} steps ({run.total_steps - start} of them now, in {minutes} min {seconds} s).")
    print(_results(checkpoints, folder))
    checkpoints.close()


def evaluate_checkpoint(run: Run, path: str) -> dict[str, float]:
    """Evaluate weights, given as `load_weights` takes them, and print the result; of a run, its moving average."""
    params, said = load_weights(path, run.model)
    params = jax.device_put(params, replicated(run.mesh))
    result = _evaluate(run, make_eval_step(run.model, run.mesh), params, None)
    print(f"{said}\n{path}: {_say(result)}")
    return result


class Meter:
    """Metrics of steps, read one step late so that the device never waits for the host, and their rate."""

    def __init__(self, batch_size: int):
        self._batch_size = batch_size
        self._pending: tuple[int, dict[str, jax.Array]] | None = None
        self._losses: list[float] = []
        self._latest: dict[str, float] = {}
        self._skipped = 0
        self._steps, self._seconds = 0, math.nan
        self._mark: float | None = None  # the first step's time is the compiler's

    def add(self, step: int, metrics: dict[str, jax.Array], skipped: int) -> None:
        self._collect()
        self._pending = step, metrics
        self._skipped += skipped

    def _collect(self) -> None:
        """Wait for the pending step; TrainingDiverged where it is not finite."""
        if self._pending is None:
            return
        step, metrics = self._pending
        self._latest = {name: float(value) for name, value in to_host(metrics).items()}
        self._pending = None
        if not all(math.isfinite(value) for value in self._latest.values()):
            said = ", ".join(f"{name}={value:g}" for name, value in self._latest.items())
            raise TrainingDiverged(
                f"step {step} is not finite: {said}. Nothing was saved since the last checkpoint; lower "
                "--config.optimizer.learning_rate or set --config.optimizer.clip_norm"
            )
        self._losses.append(self._latest["loss"])
        if self._mark is None:
            self.restart_clock()
        else:
            self._steps += 1

    def restart_clock(self) -> None:
        """Leave the time since the last `read` out of the rate."""
        self._mark, self._steps = time.monotonic(), 0

    def read(self) -> dict[str, float]:
        """Means since the last read, up to and including the newest step, which this waits for."""
        self._collect()
        now = time.monotonic()
        if self._steps:
            self._seconds = (now - self._mark) / self._steps
        self.restart_clock()
        values = {
            "train/loss": sum(self._losses) / len(self._losses),
            **{f"train/{k}": self._latest[k] for k in ("learning_rate", "grad_norm", "update_norm")},
            "perf/img_per_sec": self._batch_size / self._seconds if self._seconds > 0 else 0.0,
            "data/skipped": float(self._skipped),
        }
        self._losses = []
        return values

    def seconds_per_step(self) -> float:
        return self._seconds if self._seconds > 0 else 0.0


def _start(run: Run, checkpoints: Checkpoints) -> tuple[TrainState, str]:
    """The state to go on from, and where it is from: the run's newest checkpoint, other weights, or the seed."""
    config = run.config
    ema = config.train.ema_decay > 0
    target = abstract_state(run.model, run.optimizer, config.seed, ema, run.mesh)
    if steps := checkpoints.steps():
        step = steps[-1]
        saved, here = checkpoints.position(step), run.position(step)
        if saved != here:
            raise ValueError(
                f"{checkpoints.folder / str(step)} stands at {saved} in the data, this run would at {here}"
            )
        return checkpoints.restore(step, target), f"resuming at step {step} of {checkpoints.folder}"
    if config.init_from:
        params, said = load_weights(config.init_from, run.model, new_head=config.init_new_head)
        return init_state(run.model, run.optimizer, config.seed, ema, run.mesh, params), f"fine-tuning: {said}"
    return init_state(run.model, run.optimizer, config.seed, ema, run.mesh), f"starting from seed {config.seed}"


# What may differ between a run and its resumption: none of it changes what is computed.
_MAY_CHANGE = ("data.workers", "data.data_dir", "data.folder", "log_every_steps", "eval.", "checkpoint.", "init_")


def _claim(folder: Path, config: ml_collections.ConfigDict) -> None:
    """Save the config with the run, or compare it with the one that is there."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "config.json"
    ours = json.loads(config.to_json_best_effort())
    if path.exists():
        theirs = json.loads(path.read_text())
        flat = [_flatten(tree) for tree in (theirs, ours)]
        names = sorted(name for name in flat[0].keys() | flat[1].keys() if not name.startswith(_MAY_CHANGE))
        changed = [n for n in names if flat[0].get(n) != flat[1].get(n)]
        if changed:
            lines = "".join(f"\n  {n}: {flat[0].get(n)} there, {flat[1].get(n)} now" for n in changed)
            raise ValueError(
                f"{folder} holds a run of another config:{lines}\n"
                "Take another --workdir (and --config.init_from to go on from its weights), or the old values."
            )
    if jax.process_index() == 0:
        temporary = path.with_suffix(".tmp")
        temporary.write_text(json.dumps(ours, indent=2) + "\n")
        temporary.replace(path)


def _flatten(tree: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(tree, dict):
        return {prefix: tree}
    return {
        k: v for name, sub in tree.items() for k, v in _flatten(sub, f"{prefix}.{name}" if prefix else name).items()
    }


def _evaluate(run: Run, eval_step: Any, params: Any, ema: Any) -> dict[str, float]:
    """The metrics of the weights to be used: the moving average if there is one, then the raw ones as `eval_raw/`."""
    weights = {"eval": params} if ema is None else {"eval": ema, "eval_raw": params}
    return {
        f"{prefix}/{name}": value
        for prefix, tree in weights.items()
        for name, value in evaluate(eval_step, tree, run.eval_batches(), len(run.eval_source)).items()
    }


def _say(result: dict[str, float]) -> str:
    text = (
        f"top-1 {result['eval/acc1']:.2f} %, top-5 {result['eval/acc5']:.2f} %, loss {result['eval/loss']:.4f} "
        f"on {result['eval/count']} images"
    )
    return text + (f" (without averaging: top-1 {result['eval_raw/acc1']:.2f} %)" if "eval_raw/acc1" in result else "")


def _describe(run: Run, state: TrainState, said: str) -> None:
    config = run.config
    parameters = sum(x.size for x in jax.tree.leaves(state.params))
    print(
        f"{config.model.name}: {parameters:,} parameters, {run.model.image_size[0]} x {run.model.image_size[1]} px, "
        f"{config.model.dtype}; {len(run.train_source):,} training and {len(run.eval_source):,} test images\n"
        f"{run.total_steps:,} steps of {config.train.batch_size} images, {run.steps_per_epoch:,} an epoch, on "
        f"{run.mesh.size} x {run.mesh.devices.flat[0].device_kind} ({config.train.batch_size // run.mesh.size} each)\n"
        f"{said}; the first step compiles, which takes a while",
        flush=True,
    )


def _results(checkpoints: Checkpoints, folder: Path) -> str:
    best = checkpoints.best()
    said = f"best: step {best[0]}, {_say(best[1])}\n" if best else ""
    return f"{said}checkpoints {checkpoints.steps()}, metrics and config are in {folder}"
