"""Which blocks get the teacher's attention back: one after the other, the one that brings most accuracy."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax

from flatten_jax.linearize import stages
from flatten_jax.linearize.swap import restored
from flatten_jax.training import agreement, loop, setup
from flatten_jax.training.checkpoint import Checkpoints, load_weights
from flatten_jax.training.step import init_state
from flatten_jax.weights.layout import attention_of_blocks

FOUND = "search.json"


def run(conversion: "stages.Conversion", start: Path, folder: Path) -> tuple["stages.Conversion", dict[str, Any]]:
    """(the conversion with the blocks that were found, what was tried), from the weights in `start`; made once.

    Every block that has another attention than the teacher's is tried: it gets the teacher's attention, with the
    teacher's weights of it. The best one stays, and the next is looked for, `linearize.search` times. The run in
    `folder`, of step 0, holds the result.
    """
    found, checkpoints = folder / FOUND, Checkpoints(folder / "checkpoints")
    if checkpoints.newest() is None or not found.exists():
        chosen, rounds = _search(conversion, start)
        prepared = setup.prepare(stages.stage_config(chosen.config, "swap"))
        variables = _with(conversion, chosen, load_weights(start, _model(conversion))[0])
        result = loop.evaluate_weights(prepared, variables)
        agreement.claim(folder, prepared.config, prepared.train_source.class_names)
        if jax.process_index() == 0:
            found.write_text(json.dumps({"keep": chosen.keep, "rounds": rounds}) + "\n")
        checkpoints.save(init_state(prepared.training, variables), prepared.position(0), result)
        checkpoints.close()
    said = json.loads(found.read_text())
    chosen = stages.keeping(conversion, tuple(said["keep"]))
    numbers = {key.removeprefix("eval/"): value for key, value in (checkpoints.evaluation(0) or {}).items()}
    return chosen, {"attention": chosen.config.model.attn_type, **said, **numbers, "steps": 0}


def _search(conversion: "stages.Conversion", start: Path) -> tuple["stages.Conversion", list[list[dict[str, Any]]]]:
    prepared = setup.prepare(stages.stage_config(conversion.config, "swap"))
    variables, rounds, best = load_weights(start, prepared.model)[0], [], conversion
    for _ in range(conversion.config.linearize.search):
        tried = []
        for number in _changed(best):
            candidate = stages.keeping(best, tuple(sorted((*best.keep, number))))
            task = dataclasses.replace(prepared.task, model=_model(candidate))
            result = loop.evaluate_weights(prepared, _with(conversion, candidate, variables), task)
            tried.append({"block": number, "acc1": result["eval/acc1"], "loss": result["eval/loss"]})
            stages.say(f"  with block {number} of the teacher: {task.words(result)}")
        if not tried:
            raise ValueError(
                f"linearize.search={conversion.config.linearize.search} is more than the blocks that could get the "
                f"teacher's attention back, {len(rounds)}"
            )
        # Among equal accuracies the lower loss decides.
        first = max(tried, key=lambda one: (one["acc1"], -one["loss"]))
        best = stages.keeping(best, tuple(sorted((*best.keep, first["block"]))))
        rounds.append(tried)
        stages.say(f"search: block {first['block']} gets the teacher's attention back")
    return best, rounds


def _changed(conversion: "stages.Conversion") -> list[int]:
    """Numbers of the blocks whose attention is not the teacher's."""
    ours, theirs = (
        [name for stage in model.attentions() for name in stage]
        for model in (_model(conversion), conversion.trained.model)
    )
    return [number for number, (a, b) in enumerate(zip(ours, theirs, strict=True)) if a != b]


def _model(conversion: "stages.Conversion") -> Any:
    return setup.model_of(conversion.config)


def _with(before: "stages.Conversion", after: "stages.Conversion", variables: dict[str, Any]) -> dict[str, Any]:
    """Variables of `after` from those of `before`, and from the teacher's in the blocks that `after` has back."""
    model, paths = _model(after), list(attention_of_blocks(_model(after)))
    back = {paths[number] for number in set(after.keep) - set(before.keep)}
    return restored(variables, model, after.trained.variables, back)
