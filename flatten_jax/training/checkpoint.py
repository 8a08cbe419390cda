"""Checkpoints of a run, by Orbax: saved asynchronously, the newest few and the best kept."""

from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from orbax.checkpoint import checkpoint_managers as policies

from flatten_jax.training.step import TrainState
from flatten_jax.weights.load import load_with_report


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

    def restore_weights(self, step: int) -> tuple[dict[str, Any], dict[str, Any] | None]:
        """(parameters, their moving average or None) as NumPy arrays, whatever model and optimizer the run had."""
        metadata = self._manager.item_metadata(step)["state"]
        target = jax.tree.map(lambda m: np.empty(m.shape, m.dtype), getattr(metadata, "tree", metadata))
        tree = self._restore(step, state=ocp.args.StandardRestore(target))["state"]
        return tree["params"], tree.get("ema")

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


def save_weights(folder: str | Path, params: dict[str, Any]) -> None:
    """Weights alone, from a converted file say, as a checkpoint of step 0 that can be evaluated and fine-tuned from."""
    checkpoints = Checkpoints(Path(folder) / "checkpoints")
    checkpoints.save(TrainState(np.int32(0), params, None, None), {"step": 0}, None)
    checkpoints.wait()
    checkpoints.close()


def load_weights(path: str | Path, model: nn.Module, *, new_head: bool = False) -> tuple[dict[str, Any], str]:
    """Weights for evaluation or fine-tuning, matched strictly against `model`, and a report of what was loaded.

    Args:
        path: a run's folder, one of its checkpoints (as `find` takes it: its moving average, where it has one), or a
            file that `flatten_jax.load_weights` takes.
        new_head: make the classifier new, for another number of classes, instead of loading it.

    Raises:
        FileNotFoundError, ValueError: nothing there, or lists missing, unexpected and misshapen entries together.
    """
    source: Any = Path(path)
    if source.is_dir():
        folder, step = find(path)
        params, ema = Checkpoints(folder, read_only=True).restore_weights(step)
        source = {"params": params if ema is None else ema}
        path = folder / str(step)
    try:
        variables, report = load_with_report(source, model, new_head=new_head)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return variables["params"], f"weights of {path}: {report}"
