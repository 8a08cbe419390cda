"""The training loop: batch, step, evaluate, save, always in this order, so that a resumed run is step-exact."""

import concurrent.futures
import contextlib
import math
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from absl import logging

from flatten_jax import paths
from flatten_jax.counted import counted
from flatten_jax.training import agreement, bucket_lock, lock, profile, tracker
from flatten_jax.training.checkpoint import Checkpoints, load_weights
from flatten_jax.training.evaluate import evaluate, make_eval_step
from flatten_jax.training.metrics import Meter, MetricsWriter, Progress, TrainingDiverged
from flatten_jax.training.preemption import Preempted, Preemption
from flatten_jax.training.run_config import find_config
from flatten_jax.training.setup import Run, takes_tokens
from flatten_jax.training.sharding import by_size, bytes_per_device, describe_mesh, to_host
from flatten_jax.training.step import TrainState, abstract_state, init_state, make_train_step
from flatten_jax.training.tasks import Classify, Variables

__all__ = ["Preempted", "TrainingDiverged", "check", "evaluate_checkpoint", "train"]

FIRST_SAVE_SECONDS = 20  # that a signal before the first step waits: what would be saved can be made again
CHECKED_STEPS = 3  # of `check`: the first ones take longer


def train(run: Run, workdir: str, *, wait_seconds: float = 300, profiled: profile.Steps | None = None) -> None:
    """Train to the end, from wherever the run in `workdir` stands.

    Writes `config.json`, `classes.json`, `metrics.jsonl`, `tensorboard/` and `checkpoints/<step>/` there.

    Args:
        wait_seconds: how long to wait for other processes to get ready, see `agreement.join`.
        profiled: the first and the last step to trace into `profile/`.

    Raises:
        Preempted: on SIGTERM or SIGINT, with a checkpoint of the step reached.
        ValueError: another process trains in `workdir`, or did so with another config; steps that are not taken.
        ImportError: the tracker is not installed.
        TrainingDiverged: the checkpoints before it stay.
    """
    folder = paths.path_of(workdir)
    only_one = bucket_lock.only_run_in_bucket if paths.is_bucket(folder) else lock.only_run_in
    with only_one(folder) if agreement.is_first() else contextlib.nullcontext("") as other:
        agreement.refuse_if_taken(folder, other, wait_seconds)
        _train(run, folder, wait_seconds, profiled)


def _train(run: Run, folder: Any, wait_seconds: float, profiled: profile.Steps | None) -> None:
    config, total = run.config, run.total_steps
    if agreement.is_first():
        tracker.check_installed(config.tracker.name)
    checkpoints = Checkpoints(folder / "checkpoints", keep=config.checkpoint.keep, metric=f"eval/{run.task.best}")
    facts = {"steps": total, "evaluation batches": run.num_eval_batches, "checkpoints seen": checkpoints.steps()}
    agreement.check_same_everywhere(config, facts, wait_seconds)
    begun = (folder / "config.json").exists()
    agreement.claim(folder, config, run.train_source.class_names)
    newest = checkpoints.newest()
    if begun and newest is None:
        _say(f"{folder} holds no checkpoint, as nothing was saved yet: it starts from the beginning")
    start = newest or 0
    profile.check(profiled, start, total)
    every = {kind: run.in_steps(config[kind].every_epochs) for kind in ("eval", "checkpoint")}
    # Of a step that was saved because of a signal, the evaluation may be missing.
    owed = start > 0 and _is_due(start, every["eval"], total) and checkpoints.evaluation(start) is None
    if start >= total and not owed:
        _say(f"{folder} holds a finished run of {counted(start, 'step')}.\n{_results(run, checkpoints, folder)}")
        return

    with contextlib.ExitStack() as stack:
        preemption = stack.enter_context(Preemption(run.mesh))
        stack.callback(checkpoints.close)
        state, origin = preemption.interruptible(lambda: _start(run, checkpoints, newest))
        preemption.defer()
        writer = stack.enter_context(contextlib.closing(MetricsWriter(folder, start, tracker.opener(config, folder))))
        progress = stack.enter_context(contextlib.closing(Progress(start, total)))
        meter = Meter(config.train.batch_size, config.train.skip_nonfinite_steps)
        began, step, result = time.monotonic(), start, None
        _describe(run, state, origin)
        try:
            train_step, eval_step = preemption.interruptible(lambda: _compile(run, state))

            def evaluated(step: int, state: TrainState) -> dict[str, float]:
                result = _evaluate(run, eval_step, state.variables, state.averaged, preemption.watch)
                writer.write(step, result)
                progress.line(f"step {step} (epoch {step / run.steps_per_epoch:.1f}): {run.task.words(result)}")
                return result

            if owed:
                checkpoints.add_evaluation(start, evaluated(start, state))
            batches = stack.enter_context(contextlib.closing(run.train_batches(start)))
            steps = profile.traced(range(start + 1, total + 1), profiled, folder / "profile", meter.collect)
            for step in stack.enter_context(contextlib.closing(steps)):
                batch, replaced_images = next(batches)
                state, metrics = train_step(state, batch, *run.task.constants)
                meter.add(step, metrics, replaced_images)  # looks at the step before, while this one computes
                result = None

                due = {kind: _is_due(step, interval, total) for kind, interval in every.items()}
                if step % config.log_every_steps == 0 or any(due.values()):
                    values = meter.read()
                    writer.write(step, values)
                    progress.update(step, values, meter.seconds_per_step() * (total - step))
                if due["eval"]:
                    result = evaluated(step, state)
                if due["checkpoint"]:
                    writer.send()
                    checkpoints.save(state, run.position(step), result)
                if any(due.values()):
                    meter.restart_clock()
                preemption.check()
            checkpoints.wait()
        except Preempted:
            writer.write(step, meter.read())  # waits for the step, and refuses one that is not finite
            writer.send()
            checkpoints.wait()
            if step in checkpoints.steps() or _saved_in_time(checkpoints, state, run.position(step), result):
                _say(f"step {step} of {total} is saved in {checkpoints.folder}; the same command goes on from there")
            else:
                _say(
                    f"step 0 was not saved in {FIRST_SAVE_SECONDS} s, and nothing is lost: the same command starts anew"
                )
            raise
    minutes, seconds = divmod(round(time.monotonic() - began), 60)
    _say(f"finished {counted(total, 'step')} ({total - start} of them now, in {minutes} min {seconds} s).")
    _draw_curves(folder)
    _say(_results(run, checkpoints, folder))


def _saved_in_time(
    checkpoints: Checkpoints, state: TrainState, position: dict[str, Any], result: dict[str, float] | None
) -> bool:
    """Save a step; before the first one of a run by itself, give up where the machine is too busy compiling."""

    def save() -> None:
        checkpoints.save(state, position, result)
        checkpoints.wait()

    if position["step"] or jax.process_count() > 1:
        save()
        return True
    with contextlib.suppress(concurrent.futures.TimeoutError):
        concurrent.futures.ThreadPoolExecutor(1).submit(save).result(FIRST_SAVE_SECONDS)
        return True
    return False


def evaluate_weights(run: Run, variables: Variables, task: Classify | None = None) -> dict[str, float]:
    """{"eval/acc1": ...} of variables of the run's model on its evaluation set.

    Args:
        task: with another model for pictures of the same size; default: the run's.
    """
    task = task or run.task
    variables = jax.device_put(variables, by_size(run.mesh, variables))
    with contextlib.closing(run.eval_batches()) as batches:
        values = evaluate(task, make_eval_step(task, run.mesh), variables, batches, len(run.eval_source))
    return {f"eval/{name}": value for name, value in values.items()}


def evaluate_checkpoint(run: Run, path: str) -> dict[str, float]:
    """Evaluate weights, given as `load_weights` takes them, and print the result; of a run, its moving average."""
    variables, said = load_weights(path, run.model)
    result = evaluate_weights(run, variables)
    note = run.eval_source.note and f"note: {run.eval_source.note}"
    _say("\n".join(filter(None, [note, said, f"{path}: {run.task.words(result)}", run.task.details(result)])))
    return result


def check(run: Run) -> None:
    """Everything of a run but the training: its data, its first weights, both compiled steps, some of each, in time.

    Nothing is written.
    """
    tracker.check_installed(run.config.tracker.name)
    with Preemption(run.mesh) as preemption:
        state, origin = preemption.interruptible(lambda: _first_state(run))
        _describe(run, state, origin)
        train_step, eval_step = preemption.interruptible(lambda: _compile(run, state))
        variables = jax.tree.map(jnp.copy, state.variables)  # the state's own are given away to the first step
        reading, computing = [], []
        with contextlib.closing(run.train_batches(0)) as batches:
            for _ in range(min(CHECKED_STEPS, run.total_steps)):
                began = time.monotonic()
                batch, _ = next(batches)
                reading.append(time.monotonic() - began)
                state, metrics = train_step(state, batch, *run.task.constants)
                losses = to_host(metrics)
                computing.append(time.monotonic() - began - reading[-1])
                if not all(map(math.isfinite, map(float, losses.values()))):
                    raise TrainingDiverged(f"a first step is not finite: {losses}")
        began = time.monotonic()
        with contextlib.closing(run.eval_batches()) as batches:
            to_host(eval_step(run.task.zero_sums(), variables, next(batches)))
        evaluation = (time.monotonic() - began) * run.num_eval_batches
    step = max(computing[-1], reading[-1])
    evaluations = -(-run.total_steps // run.in_steps(run.config.eval.every_epochs))
    memory = run.mesh.devices.flat[0].memory_stats() or {}
    peak = f"; at most {memory['peak_bytes_in_use'] / 2**20:,.0f} MiB a device" if "peak_bytes_in_use" in memory else ""
    _say(
        f"a batch is read in {reading[0]:.2f} s, a step takes {step:.3f} s ({run.config.train.batch_size / step:.0f} "
        f"images/s, of {counted(len(computing), 'step')} the last), an evaluation {evaluation:.1f} s{peak}\n"
        f"the run of {counted(run.total_steps, 'step')} and {counted(evaluations, 'evaluation')} will take about "
        f"{_duration(run.total_steps * step + evaluations * evaluation)}; nothing was written"
    )


def _duration(seconds: float) -> str:
    hours, minutes = divmod(-(-seconds // 60), 60)
    return f"{hours:,.0f} h {minutes:.0f} min" if hours else f"{minutes:.0f} min"


def _first_state(run: Run) -> tuple[TrainState, str]:
    """The state that a run starts from, and where it is from: other weights, or the seed."""
    config = run.config
    if config.init_from:
        try:
            variables, said = load_weights(config.init_from, run.model, new_head=config.init_new_head)
        except ValueError as error:
            hint = "\nWithout --config the config of that run is taken." if find_config(config.init_from) else ""
            raise ValueError(f"{error}{hint}") from error
        return init_state(run.training, variables), f"fine-tuning: {said}"
    return init_state(run.training), f"starting from seed {config.seed}"


def _start(run: Run, checkpoints: Checkpoints, step: int | None) -> tuple[TrainState, str]:
    """The state to go on from, and where it is from: a checkpoint of the run, other weights, or the seed."""
    if step is None:
        return _first_state(run)
    saved, here = checkpoints.position(step), run.position(step)
    if saved != here:
        raise ValueError(f"{checkpoints.folder / str(step)} stands at {saved} in the data, this run would at {here}")
    before, now = checkpoints.devices(step), describe_mesh(run.mesh)
    moved = f", which was saved on {before}, now on {now}" if before != now else ""
    state = checkpoints.restore(step, abstract_state(run.training))
    return state, f"resuming at step {step} of {checkpoints.folder}{moved}"


def _compile(run: Run, state: TrainState) -> tuple[Callable, Callable]:
    """Both steps for the shapes of this run, ahead of the first batch, and what the training step takes."""
    began = time.monotonic()
    train_batch, eval_batches = run.abstract_batches()
    train_step = make_train_step(run.training).lower(state, train_batch, *run.task.constants).compile()
    sums = run.task.zero_sums()
    eval_step = make_eval_step(run.task, run.mesh)
    if len(eval_batches) == 1:  # else each shape is compiled when it comes
        eval_step = eval_step.lower(sums, state.variables, eval_batches[0]).compile()
    memory = train_step.memory_analysis()
    needed = f", the training step computes in {memory.temp_size_in_bytes / 2**20:,.0f} MiB a device" if memory else ""
    _say(f"compiled in {time.monotonic() - began:.0f} s{needed}")
    return train_step, eval_step


def _is_due(step: int, interval: int, total: int) -> bool:
    return step == total or step % interval == 0


def _evaluate(
    run: Run,
    eval_step: Callable,
    variables: Variables,
    averaged: Variables | None,
    watch: Callable = lambda batches: batches,
) -> dict[str, float]:
    """The metrics of the weights to be used: the moving average if there is one, then the raw ones as `eval_raw/`."""
    weights = {"eval": variables} if averaged is None else {"eval": averaged, "eval_raw": variables}
    result = {}
    for prefix, tree in weights.items():
        with contextlib.closing(run.eval_batches()) as batches:
            values = evaluate(run.task, eval_step, tree, watch(batches), len(run.eval_source))
        result |= {f"{prefix}/{name}": value for name, value in values.items()}
    return result


def _draw_curves(folder: Any) -> None:
    if jax.process_index():
        return
    try:
        from flatten_jax.analysis import curves  # matplotlib, which only this needs

        curves.draw_curves([folder], folder / "curves.png")
    except Exception as error:  # of whatever library: no picture is worth a run
        logging.warning("%s cannot be drawn, the run itself is complete: %s", folder / "curves.png", error)


def _say(text: str) -> None:
    if jax.process_index() == 0:
        print(text, flush=True)


def _describe(run: Run, state: TrainState, origin: str) -> None:
    config = run.config
    parameters = sum(x.size for x in jax.tree.leaves(state.params))
    tests, classes = counted(len(run.eval_source), "test image"), counted(run.model.num_classes, "class")
    share = counted(config.train.batch_size // run.mesh.size, "image")
    height, width = run.model.image_size
    takes = f"{height * width:,} tokens" if takes_tokens(run.model) else f"{height} x {width} px"
    _say(
        f"{config.model.name}: {parameters:,} parameters, {takes}, "
        f"{config.model.dtype}; {len(run.train_source):,} training and {tests} of {classes}\n"
        f"{counted(run.total_steps, 'step')} of {counted(config.train.batch_size, 'image')}, "
        f"{run.steps_per_epoch:,} an epoch\n"
        f"{describe_mesh(run.mesh)}, {run.mesh.devices.flat[0].device_kind}: "
        f"{share} and {bytes_per_device(state) / 2**20:,.1f} MiB of state each\n"
        f"{origin}; the first step compiles, which takes a while"
    )
    for note in run.notes():
        _say(f"note: {note}")
    if run.mesh.devices.flat[0].platform != "cpu" and config.model.dtype == "float32":
        _say("note: computing in float32; --config.model.dtype=bfloat16 is faster here and takes less memory")


def _results(run: Run, checkpoints: Checkpoints, folder: Any) -> str:
    best = checkpoints.best()
    said = f"best: step {best[0]}, {run.task.words(best[1])}\n" if best else ""
    return f"{said}checkpoints {checkpoints.steps()}, metrics and config are in {folder}"
