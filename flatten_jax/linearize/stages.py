"""The stages of a conversion, each a run in a folder of its own: swap, align, features, search, train."""

import contextlib
import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import ml_collections

from flatten_jax import paths
from flatten_jax.distill.choose import taught
from flatten_jax.distill.teacher import Teacher, check_blocks, checked_fingerprint, needs_teacher
from flatten_jax.linearize import report, search
from flatten_jax.linearize.swap import student_of, swap
from flatten_jax.models.images import normalize
from flatten_jax.trained.load import Trained, load_trained
from flatten_jax.training import agreement, loop, settings, setup, teachers
from flatten_jax.training.checkpoint import Checkpoints, load_weights
from flatten_jax.training.lock import only_run_in
from flatten_jax.training.run_config import model_section
from flatten_jax.training.sharding import to_host
from flatten_jax.training.step import init_state
from flatten_jax.training.tasks import Classify

RESULTS = "linearize.json"
_SECTION = "linearize."


@dataclasses.dataclass(frozen=True)
class Conversion:
    """What is converted to what.

    Attributes:
        config: of the whole, with the student's model.
        trained: the teacher.
        given: options of the model that are not the teacher's.
        keep: numbers of the blocks that keep the teacher's attention.
    """

    config: ml_collections.ConfigDict
    trained: Trained
    given: dict[str, Any]
    keep: tuple[int, ...] = ()


def resolve(config: ml_collections.ConfigDict) -> Conversion:
    """Load the teacher, and complete the config with the student's model.

    Raises:
        FileNotFoundError, ValueError: no teacher; a student that does not fit it.
    """
    config = settings.checked(config)
    distill = config.distill
    given = {key: value for key, value in config.model.items() if value is not None and key != "attn_type"}
    size = {"image_size": given["image_size"]} if "image_size" in given else {}
    trained = load_trained(distill.teacher, distill.teacher_model or None, **size)
    distill.fingerprint = checked_fingerprint(trained.variables, distill)
    keep = tuple(sorted({int(number) for number in teachers.split(config.linearize.keep)}))
    conversion = keeping(Conversion(config, trained, given), keep)
    if "align" in teachers.split(config.linearize.stages):  # all that it could object to, before anything is opened
        task = Classify(setup.model_of(conversion.config))
        taught(task, _teacher(conversion), stage_config(conversion.config, "align").distill)
    return conversion


def keeping(conversion: Conversion, keep: tuple[int, ...]) -> Conversion:
    """The same with the teacher's attention in these blocks."""
    config, teacher = conversion.config.copy_and_resolve_references(), conversion.trained.model
    name, options, model = student_of(teacher, config.linearize.attention, keep, conversion.given)
    check_blocks(teacher, model)
    section = model_section(name)
    with section.unlocked():
        section.update({"dtype": "float32", **{key: options[key] for key in options}})
        section.update(image_size=model.image_size, num_classes=model.num_classes)
    with config.unlocked():
        config.model = section
    return dataclasses.replace(conversion, config=config, keep=keep)


def run(config: ml_collections.ConfigDict, workdir: str, *, wait_seconds: float = 300) -> dict[str, Any]:
    """Convert `distill.teacher` by the section `linearize` of a config, from where the conversion in `workdir` stands.

    Writes the stages' runs to `swap/`, `align/`, ... there, and the numbers of each to `linearize.json`.

    Returns:
        what is in that file.

    Raises: as `loop.train`, and ValueError for a teacher and a student that do not fit.
    """
    folder = paths.local(workdir, "--workdir")
    conversion = resolve(config)
    say(f"the teacher: {conversion.trained.said.splitlines()[0]}")
    for line in conversion.trained.said.splitlines()[1:]:
        if "resampled" in line or " -> " in line:
            say(line)
    with only_run_in(folder) if agreement.is_first() else contextlib.nullcontext("") as other:
        agreement.refuse_if_taken(folder, other, wait_seconds)
        return _run(conversion, folder, wait_seconds)


def _run(conversion: Conversion, folder: Path, wait_seconds: float) -> dict[str, Any]:
    config, results, known = conversion.config, {}, _read(folder / RESULTS)
    plain = setup.prepare(stage_config(config, "swap"))
    agreement.claim(folder, config, plain.train_source.class_names)
    results["teacher"] = _of_teacher(conversion, plain, known)
    _write(folder, results)
    start = folder / "swap"
    results["swap"] = _with_blocks(_swap(conversion, plain, start), known.get("swap"), conversion, plain, start)
    _write(folder, results)
    done = teachers.split(config.linearize.stages)
    for stage in teachers.STAGES:
        if stage == "train" and config.linearize.search:
            conversion, results["search"] = search.run(conversion, start, folder / "search")
            start = folder / "search"
            _write(folder, results)
        if stage not in done:
            continue
        say(f"\nstage {stage}")
        prepared = setup.prepare(stage_config(conversion.config, stage, start))
        loop.train(prepared, str(folder / stage), wait_seconds=wait_seconds)
        start = folder / stage
        results[stage] = _result(prepared, start)
        if stage == "align":
            results[stage] = _with_blocks(results[stage], known.get(stage), conversion, plain, start)
        _write(folder, results)
    say(f"\n{table(results)}\nwritten: {folder / RESULTS}; the converted model is {start}")
    return results


def stage_config(config: ml_collections.ConfigDict, stage: str, start: Path | None = None) -> ml_collections.ConfigDict:
    """The config of a stage by itself, an ordinary run.

    Args:
        stage: "swap" (the model as it is, and no teacher), or one of `teachers.STAGES`.
        start: the run whose weights it starts from.
    """
    stages, config = config.linearize, config.copy_and_resolve_references()
    with config.unlocked():
        config.init_from = str(start or "")
        for key, setting in settings.SETTINGS.items():
            if key.startswith(_SECTION):
                config.linearize[key.removeprefix(_SECTION)] = setting.before
        if stage == "align":
            config.distill.update(kind="align", weight=0.0, new_factor=1.0)
            peak = stages.align_learning_rate * 512 / config.train.batch_size  # which is scaled to the batch
            config.optimizer.update(learning_rate=peak, weight_decay=0.0, min_learning_rate=0.0)
        elif stage == "features":
            config.distill.update(kind="features", weight=0.0)
        elif stage == "swap":
            config.distill.update(kind="none", weight=0.0, new_factor=1.0)
        if stage in ("align", "features"):
            config.train.update(epochs=stages[f"{stage}_epochs"], warmup_epochs=0.0, cooldown_epochs=0.0, ema_decay=0.0)
        if not needs_teacher(config):
            config.distill.update(teacher="", teacher_model="", fingerprint="")
    return config


def _of_teacher(conversion: Conversion, run: setup.Run, before: dict[str, Any]) -> dict[str, Any]:
    """What the teacher reaches on the same evaluation set; measured once."""
    known = before.get("teacher", {})
    if known.get("fingerprint") == conversion.config.distill.fingerprint:
        return known
    trained = conversion.trained
    task = dataclasses.replace(run.task, model=trained.model, mean=tuple(trained.mean), std=tuple(trained.std))
    result = loop.evaluate_weights(run, trained.variables, task)
    say(f"the teacher: {task.words(result)}")
    return {
        "source": conversion.config.distill.teacher,
        "fingerprint": conversion.config.distill.fingerprint,
        "attention": trained.model.attn_type,
        **_numbers(result),
    }


def _swap(conversion: Conversion, run: setup.Run, folder: Path) -> dict[str, Any]:
    """The run at step 0 of the student with the teacher's weights, evaluated; made once."""
    config, checkpoints = conversion.config, Checkpoints(folder / "checkpoints")
    said = folder / "swap.json"
    if checkpoints.newest() is None:
        copy = config.linearize.copy
        variables, copied = swap(conversion.trained.variables, conversion.trained.model, run.model, copy, config.seed)
        say(f"swap: {copied}")
        agreement.claim(folder, run.config, run.train_source.class_names)
        result = loop.evaluate_weights(run, variables)
        say(f"after the swap: {run.task.words(result)}")
        found = {"copied": copied.matched, "new": copied.made, "left_out": copied.ignored}
        if jax.process_index() == 0:
            said.write_text(json.dumps(found) + "\n")
        checkpoints.save(init_state(run.training, variables), run.position(0), result)
        checkpoints.close()
    model = {"model": config.model.name, "attention": config.model.attn_type, "keep": list(conversion.keep)}
    chosen = {**model, "copy": config.linearize.copy, "seed": config.seed}
    return {**chosen, **_read(said), **_numbers(checkpoints.evaluation(0) or {}), "steps": 0}


def _with_blocks(
    result: dict[str, Any], known: dict[str, Any] | None, conversion: Conversion, run: setup.Run, folder: Path
) -> dict[str, Any]:
    """A stage's numbers with those of `_blocks`, which are not measured again."""
    if known and "blocks" in known and known == {**result, "blocks": known["blocks"]}:
        return known
    return {**result, "blocks": _blocks(conversion, run, folder)}


def _blocks(conversion: Conversion, run: setup.Run, folder: Path) -> list[dict[str, Any]]:
    """`report.blocks` of the weights in a run's folder, on some pictures of the evaluation set; it is said, too."""
    if jax.process_count() > 1:
        return []  # pictures lie on other machines
    trained, distill = conversion.trained, conversion.config.distill.to_dict()
    asked = ml_collections.ConfigDict({**distill, "kind": "none", "weight": 1.0, "new_factor": 1.0})
    task, _ = taught(run.task, _teacher(conversion), asked)
    batches = run.eval_batches()
    pictures = to_host(next(batches)["image"])[: report.PICTURES]
    batches.close()
    images = normalize(pictures, run.task.mean, run.task.std)
    rows = report.blocks(task, trained.variables, load_weights(folder, run.model)[0], images)
    say(report.words(rows))
    return rows


def _teacher(conversion: Conversion) -> Teacher:
    trained = conversion.trained
    return Teacher(trained.model, trained.variables, tuple(trained.mean), tuple(trained.std))


def _result(run: setup.Run, folder: Path) -> dict[str, Any]:
    checkpoints = Checkpoints(folder / "checkpoints", read_only=True)
    evaluation = checkpoints.evaluation(run.total_steps) or {}
    budget = {"steps": run.total_steps, "batch_size": run.config.train.batch_size, "epochs": run.config.train.epochs}
    return {"attention": run.model.attn_type, **_numbers(evaluation), **budget}


def _numbers(evaluation: dict[str, float]) -> dict[str, float]:
    return {key.removeprefix("eval/"): value for key, value in evaluation.items() if key.startswith("eval/")}


def table(results: dict[str, Any]) -> str:
    """Accuracies of the stages, for people."""
    lines = ["  stage     top-1 %    loss      steps  attention"]
    for stage in ("teacher", "swap", "align", "features", "search", "train"):
        if "acc1" in (row := results.get(stage, {})):
            lines.append(
                f"  {stage:8}  {row['acc1']:7.2f}  {row['loss']:7.4f}  {row.get('steps', 0):7}  {row['attention']}"
            )
    return "\n".join(lines)


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text()) if path.exists() else {}


def _write(folder: Path, results: dict[str, Any]) -> None:
    if jax.process_index():
        return
    paths.write_text(folder / RESULTS, json.dumps(results, indent=2) + "\n")


def say(text: str) -> None:
    """Print, in the first process."""
    if jax.process_index() == 0:
        print(text, flush=True)
