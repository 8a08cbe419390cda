"""Checkpoints of a run, by Orbax: saved asynchronously, the newest few and the best kept."""

from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from flax.traverse_util import flatten_dict, unflatten_dict
from orbax.checkpoint import checkpoint_managers as policies

from flatten_jax.training.step import TrainState
from flatten_jax.weights.match import check_entries


class Checkpoints:
    """The checkpoints in one folder, a numbered folder each.

    A checkpoint holds the whole TrainState, the position in the data (as JSON, to be looked at and compared), and the
    evaluation made at that step, if any.

    Args:
        folder: made if it is not there.
        keep: how many of the newest to keep; the best by `metric` is kept besides.
        metric: key of the evaluation, larger is better.
    """

    def __init__(self, folder: str | Path, *, keep: int = 3, metric: str = "eval/acc1", read_only: bool = False):
        self.folder = epath.Path(folder).resolve() if "://" not in str(folder) else epath.Path(folder)
        self.metric = metric
        options = ocp.CheckpointManagerOptions(
            preservation_policy=policies.AnyPreservationPolicy(
                [
                    policies.LatestN(keep),
                    policies.BestN(get_metric_fn=lambda m: m[metric], n=1, keep_checkpoints_without_metrics=False),
                ]
            ),
            best_fn=lambda m: m[metric],  # without it Orbax does not store the metrics
            cleanup_tmp_directories=not read_only,
            create=not read_only,
            read_only=read_only,
        )
        handlers = {"state": ocp.StandardCheckpointHandler(), "position": ocp.JsonCheckpointHandler()}
        self._manager = ocp.CheckpointManager(self.folder, options=options, item_handlers=handlers)

    def steps(self) -> list[int]:
        """Committed steps, ascending."""
        return sorted(self._manager.all_steps())

    def best(self) -> tuple[int, dict[str, float]] | None:
        """The kept step with the highest metric, and its evaluation."""
        evaluated = [(s, m) for s in self.steps() if (m := self._manager.metrics(s)) and self.metric in m]
        return max(evaluated, key=lambda item: (item[1][self.metric], item[0]), default=None)

    def save(self, state: TrainState, position: dict[str, Any], metrics: dict[str, float] | None) -> None:
        """Start saving; the state may be donated to the next step at once. Waits for a save still under way."""
        step = int(state.step)
        args = ocp.args.Composite(state=ocp.args.StandardSave(state), position=ocp.args.JsonSave(position))
        if not self._manager.save(step, args=args, metrics=metrics):
            raise FileExistsError(f"{self.folder / str(step)} exists already; it was not overwritten")

    def position(self, step: int) -> dict[str, Any]:
        """The position in the data that was saved with a step."""
        return self._restore(step, position=ocp.args.JsonRestore())["position"]

    def restore(self, step: int, target: TrainState) -> TrainState:
        """The state at `step`, laid out as `target` (abstract arrays with shardings, see `abstract_state`)."""
        return self._restore(step, state=ocp.args.StandardRestore(target))["state"]

    def restore_weights(self, step: int) -> dict[str, Any]:
        """The weights of a step as NumPy arrays: the moving average where the run kept one, else the parameters."""
        tree = self._restore(step, state=ocp.args.StandardRestore(self._host_target(step)))["state"]
        return tree["ema"] if tree.get("ema") else tree["params"]

    def _host_target(self, step: int) -> Any:
        """What the step holds, as NumPy targets: restoring needs no device of those that saved it."""
        metadata = self._manager.item_metadata(step)["state"]
        return jax.tree.map(lambda m: np.empty(m.shape, m.dtype), getattr(metadata, "tree", metadata))

    def _restore(self, step: int, **items: Any) -> Any:
        if step not in self.steps():
            raise FileNotFoundError(f"{self.folder} has no step {step}; it has {self.steps() or 'none'}")
        return self._manager.restore(step, args=ocp.args.Composite(**items))

    def wait(self) -> None:
        """Until the save under way is committed."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        self._manager.close()


def find(path: str | Path) -> tuple[Path, int]:
    """A run folder, its `checkpoints`, or one step's folder -> (checkpoint folder, step); the newest if not named."""
    path = Path(path)
    if path.name.isdigit() and path.is_dir():
        return path.parent, int(path.name)
    folder = path / "checkpoints" if (path / "checkpoints").is_dir() else path
    if folder.is_dir():
        steps = Checkpoints(folder, read_only=True).steps()
        if steps:
            return folder, steps[-1]
    raise FileNotFoundError(f"no checkpoint in {path}: give a run's folder or one of its checkpoints/<step>")


def load_weights(path: str | Path, params: Any, *, new_head: bool = False) -> tuple[Any, str]:
    """Weights of a checkpoint for fine-tuning, matched strictly against `params`, and a line on what was loaded.

    Args:
        path: as `find` takes it.
        params: tree of arrays (or shapes) that the model wants.
        new_head: leave the classifier `head` as it is in `params` (freshly initialised) instead of loading it.

    Raises:
        ValueError: lists missing, unexpected and misshapen entries together.
    """
    folder, step = find(path)
    given = flatten_dict(Checkpoints(folder, read_only=True).restore_weights(step), sep="/")
    wanted = flatten_dict(params, sep="/")
    kept = {k for k in wanted if new_head and k.startswith("head/")}
    hint = "" if new_head else "\n  another number of classes? --config.init_new_head=True makes a new head"
    shapes = ({k: v.shape for k, v in tree.items()} for tree in (given, wanted))
    check_entries(f"{path} does not fit the model", *shapes, remade=kept, hint=hint)
    said = f"loaded {len(wanted) - len(kept)} of {len(wanted)} arrays from {folder / str(step)}"
    if kept:
        said += f"; made new: {', '.join(sorted(kept))}"
    return unflatten_dict({k: wanted[k] if k in kept else given[k] for k in wanted}, sep="/"), said
