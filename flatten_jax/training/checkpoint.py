"""Checkpoints of a run, by Orbax: saved asynchronously, verified, the newest few and the best kept."""

import contextlib
import dataclasses
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from etils import epath
from flax.traverse_util import unflatten_dict
from jax.experimental import multihost_utils
from orbax.checkpoint import checkpoint_managers as policies

from flatten_jax import paths
from flatten_jax.training import integrity
from flatten_jax.training.integrity import DamagedCheckpointError
from flatten_jax.training.sharding import describe_mesh
from flatten_jax.training.step import TrainState
from flatten_jax.training.tasks import Variables
from flatten_jax.weights.load import load_with_report


class Checkpoints:
    """The checkpoints in one folder, a numbered folder each.

    A checkpoint holds the whole TrainState, the position in the data (as JSON, to be looked at and compared), a
    manifest of its leaves with their checksums, and the evaluation made at that step, if any.

    Args:
        folder: made if it is not there.
        keep: how many of the newest to keep; the best by `metric` is kept besides.
        metric: key of the evaluation, larger is better.
        read_only: nothing is written, moved or cleaned up.
    """

    def __init__(self, folder: str | Path, *, keep: int = 3, metric: str = "eval/acc1", read_only: bool = False):
        self.folder = epath.Path(paths.absolute(paths.path_of(folder)))
        self.metric = metric
        self._keep, self._read_only = keep, read_only
        self._orbax: ocp.CheckpointManager | None = None
        self._saving: int | None = None

    def steps(self) -> list[int]:
        """Committed steps, ascending; a save under way is not among them."""
        return sorted(
            int(folder.name) for folder in self._folders() if _fault(folder, integrity.check_committed) is None
        )

    def newest(self) -> int | None:
        """The newest step whose arrays all can be read and have their checksums; None in a folder without steps.

        Damaged steps are named in a warning, and moved aside to `<step>.damaged` unless `read_only`. With several
        processes the first one looks, for all.

        Raises:
            DamagedCheckpointError: there are steps, and none of them is whole. Nothing starts anew in silence.
        """
        found = self._look() if jax.process_index() == 0 else (0, False)
        if jax.process_count() > 1:
            found = multihost_utils.broadcast_one_to_all(np.array(found, np.int32))
        step, damaged = int(found[0]), bool(found[1])
        if step < 0 and damaged:
            raise DamagedCheckpointError(
                f"{self.folder} has no checkpoint that is whole; restore one, or take another --workdir"
            )
        return step if step >= 0 else None

    def _look(self) -> tuple[int, bool]:
        """(newest whole step or -1, whether there are damaged ones); see `newest`."""
        newest, damaged = -1, []
        for folder in sorted(self._folders(), key=lambda f: int(f.name), reverse=True):
            fault = _fault(folder, integrity.check_step if newest < 0 else integrity.check_committed)
            if fault is None:
                newest = max(newest, int(folder.name))
            else:
                logging.warning("damaged checkpoint: %s", fault)
                damaged.append(folder)
        if newest >= 0 and damaged:
            logging.warning("the checkpoint used instead is step %d of %s", newest, self.folder)
        if newest >= 0 and not self._read_only:  # out of the way of saving these steps again
            for folder in damaged:
                aside = folder.with_name(f"{folder.name}.damaged")
                if aside.exists():
                    aside.rmtree()
                folder.rename(aside)
        return newest, bool(damaged)

    def best(self) -> tuple[int, dict[str, float]] | None:
        """The kept step with the highest metric, and its evaluation."""
        evaluated = [(step, m) for step in self.steps() if self.metric in (m := self.evaluation(step) or {})]
        return max(evaluated, key=lambda item: (item[1][self.metric], item[0]), default=None)

    def save(self, state: TrainState, position: dict[str, Any], metrics: dict[str, float] | None) -> None:
        """Start saving; the state may be donated to the next step at once. Waits for a save still under way.

        Raises:
            OSError: the save before this one, or this one, failed, such as on a full disk.
        """
        self.wait()
        step = int(state.step)
        if self.folder / str(step) in self._folders():
            raise FileExistsError(f"{self.folder / str(step)} exists already; it was not overwritten")
        manifest = {"devices": _devices(state), "leaves": integrity.make_manifest(state)}
        items = ocp.args.Composite(
            state=ocp.args.StandardSave(_stored(state)),
            position=ocp.args.JsonSave(position),
            manifest=ocp.args.JsonSave(manifest),
        )
        self._saving = step
        with self._failing_with_step_and_space():
            if not self._manager().save(step, args=items, metrics=metrics):
                raise RuntimeError("Orbax refused it, without a reason")

    def wait(self) -> None:
        """Until the save under way is committed; OSError where it failed."""
        if self._orbax is not None:
            with self._failing_with_step_and_space():
                self._orbax.wait_until_finished()

    def close(self) -> None:
        if self._orbax is not None:
            with self._failing_with_step_and_space():
                self._orbax.close()
            self._orbax = None

    def position(self, step: int) -> dict[str, Any]:
        """The position in the data that was saved with a step."""
        return json.loads((self._committed(step) / "position" / "metadata").read_text())

    def evaluation(self, step: int) -> dict[str, float] | None:
        """The evaluation that was made at a step."""
        path = self._committed(step) / "metrics" / "metrics"
        return json.loads(path.read_text()) if path.exists() else None

    def add_evaluation(self, step: int, metrics: dict[str, float]) -> None:
        """Give a step the evaluation that a signal cut short when it was saved."""
        self.wait()
        if jax.process_index() == 0:
            temporary = self.folder / f"{step}.metrics"
            temporary.mkdir(exist_ok=True)
            (temporary / "metrics").write_text(json.dumps(metrics))
            temporary.rename(self._committed(step) / "metrics")

    def devices(self, step: int) -> str:
        """The mesh that saved a step, for people."""
        return json.loads((self._committed(step) / "manifest" / "metadata").read_text())["devices"]

    def restore(self, step: int, target: TrainState) -> TrainState:
        """The state at `step`, laid out as `target` (abstract arrays with shardings, see `abstract_state`).

        Raises:
            ValueError: lists every leaf whose name, shape or dtype is another in `target`; nothing is cast.
            DamagedCheckpointError: an array is not what was saved.
        """
        folder = self._committed(step)
        manifest = integrity.read_manifest(folder)
        if lines := integrity.differences(manifest, target):
            more = f"\n  and {len(lines) - integrity.MAX_LISTED} more" if len(lines) > integrity.MAX_LISTED else ""
            listed = "".join(f"\n  {line}" for line in lines[: integrity.MAX_LISTED])
            raise ValueError(f"{folder} does not fit this run:{listed}{more}")
        stored = ocp.args.StandardRestore(_stored(target))
        state = target.replace(**ocp.StandardCheckpointHandler().restore(folder / "state", args=stored))
        integrity.check_restored(state, manifest, f"{folder}")
        return state

    def restore_weights(self, step: int) -> tuple[Variables, Variables | None]:
        """(variables, their moving average or None) as NumPy arrays, whatever model and optimizer the run had."""
        folder = self._committed(step)
        manifest = integrity.read_manifest(folder)
        trees: dict[str, dict[tuple[str, ...], np.ndarray]] = {"params": {}, "state": {}, "ema": {}, "ema_state": {}}
        for name in manifest:
            kind, *path = name.split(".")
            if kind in trees:
                trees[kind][tuple(path)] = integrity.read_leaf(folder, name, manifest)
        given = {kind: unflatten_dict(tree) for kind, tree in trees.items()}
        state = TrainState(step=np.int32(step), opt_state=None, **{**given, "ema": given["ema"] or None})
        return state.variables, state.averaged

    def _folders(self) -> list[epath.Path]:
        found = [f for f in self.folder.iterdir() if f.name.isdigit()] if self.folder.exists() else []
        # In a bucket a save under way, or one that was killed, has the name of its step from the start.
        return [f for f in found if not paths.is_bucket(f) or ocp.utils.is_checkpoint_finalized(f)]

    def _committed(self, step: int) -> epath.Path:
        folder = self.folder / str(step)
        if not folder.exists():
            raise FileNotFoundError(f"{self.folder} has no step {step}; it has {self.steps() or 'none'}")
        integrity.check_committed(folder)
        return folder

    def _manager(self) -> ocp.CheckpointManager:
        """Made with the first save, when `newest` has moved what it cannot read out of its sight."""
        if self._orbax is None:
            by_metric = policies.BestN(
                get_metric_fn=lambda m: m[self.metric], n=1, keep_checkpoints_without_metrics=False
            )
            options = ocp.CheckpointManagerOptions(
                preservation_policy=policies.AnyPreservationPolicy([policies.LatestN(self._keep), by_metric]),
                best_fn=lambda m: m[self.metric],  # without it Orbax does not store the metrics
                cleanup_tmp_directories=True,
            )
            handlers = {
                "state": ocp.StandardCheckpointHandler(),
                "position": ocp.JsonCheckpointHandler(),
                "manifest": ocp.JsonCheckpointHandler(),
            }
            self.folder.mkdir(parents=True, exist_ok=True)
            self._orbax = ocp.CheckpointManager(self.folder, options=options, item_handlers=handlers)
        return self._orbax

    @contextlib.contextmanager
    def _failing_with_step_and_space(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            bucket = paths.is_bucket(self.folder)
            free = "" if bucket else f", where {shutil.disk_usage(self.folder).free / 2**20:,.1f} MiB are free"
            raise OSError(
                f"step {self._saving} could not be saved in {self.folder}{free}: "
                f"{integrity.last_cause(error)}\nThe checkpoints before it are whole: {self.steps() or 'none'}"
            ) from error


def _fault(folder: epath.Path, check: Any) -> DamagedCheckpointError | None:
    try:
        check(folder)
    except DamagedCheckpointError as error:
        return error
    return None


def _stored(state: TrainState) -> dict[str, Any]:
    """The fields that Orbax sees. It knows empty ones too, and those of models with parameters only it need not."""
    fields = {field.name: getattr(state, field.name) for field in dataclasses.fields(state)}
    return {name: tree for name, tree in fields.items() if not (isinstance(tree, dict) and not tree)}


def _devices(state: TrainState) -> str:
    mesh = getattr(getattr(state.step, "sharding", None), "mesh", None)
    return describe_mesh(mesh) if mesh is not None else "no mesh"


def find(path: Any) -> tuple[Any, int]:
    """A run folder, its `checkpoints`, or one step's folder -> (checkpoint folder, step); the newest if not named."""
    path = paths.path_of(path)
    if path.name.isdigit() and path.is_dir():
        return path.parent, int(path.name)
    folder = path / "checkpoints" if (path / "checkpoints").is_dir() else path
    if folder.is_dir():
        step = Checkpoints(folder, read_only=True).newest()
        if step is not None:
            return folder, step
    raise FileNotFoundError(f"no checkpoint in {path}: give a run's folder or one of its checkpoints/<step>")


def model_of_run(path: str | Path) -> tuple[str, dict[str, Any]] | None:
    """(name, options) of the model that the config of a run says, given its folder or its checkpoints'; or None."""
    path = paths.path_of(path)
    config = next((f for f in (path / "config.json", path.parent / "config.json") if f.exists()), None)
    if config is None:
        return None
    options = {k: v for k, v in json.loads(config.read_text())["model"].items() if v is not None}
    return options.pop("name"), options


def save_weights(folder: str | Path, variables: Variables) -> Path:
    """Weights alone, from a converted file say, as a checkpoint of step 0 that can be evaluated and fine-tuned from.

    Returns:
        the folder of the checkpoint.
    """
    folder = paths.path_of(folder)
    checkpoints = Checkpoints(folder / "checkpoints")
    state = {name: tree for name, tree in variables.items() if name != "params"}
    checkpoints.save(TrainState(np.int32(0), variables["params"], state, None, None), {"step": 0}, None)
    checkpoints.wait()
    checkpoints.close()
    return folder / "checkpoints" / "0"


def load_weights(path: str | Path, model: nn.Module, *, new_head: bool = False) -> tuple[Variables, str]:
    """Variables for evaluation or fine-tuning, matched strictly against `model`, and a report of what was loaded.

    Args:
        path: whatever `flatten_jax.load_weights` takes; of a run's folder or checkpoint the moving average, where it
            has one.
        new_head: make the classifier new, for another number of classes, instead of loading it.

    Raises:
        FileNotFoundError, ValueError: nothing there, or lists missing, unexpected and misshapen entries together.
    """
    variables, report = load_with_report(path, model, new_head=new_head)
    return variables, f"weights of {report}"
