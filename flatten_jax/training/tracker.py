"""A service that shows runs in a browser, Weights & Biases or Trackio: the numbers of a run go there too, if asked.

Neither is needed, and neither is imported unless `tracker.name` names it. They share the three functions used here.
"""

import importlib
import importlib.util
import json
import uuid
from collections.abc import Callable, Mapping
from typing import Any

import ml_collections

from flatten_jax import paths

FILE = "tracker.json"  # in a run's folder: what it is called there, so that a resumed run goes on in the same curves


def check_installed(name: str) -> None:
    """ImportError, with the way out, unless it can be imported."""
    spec = importlib.util.find_spec(name) if name != "none" else None
    if name != "none" and (spec is None or spec.origin is None):  # a folder "wandb" of runs is no module
        raise ImportError(
            f"tracker.name={name!r} needs {name}, which is not installed: pip install {name}, or leave it out "
            "(--config.tracker.name=none)"
        )


class Tracker:
    """The run of a folder, there.

    Args:
        name: "wandb" or "trackio". Who you are, and whether it is online, they know themselves (`wandb login`,
            WANDB_MODE=offline, TRACKIO_SPACE_ID).
        project: the name of a group of runs.
        folder: of the run, whose name it has.
        config: shown with the run.
    """

    def __init__(self, name: str, project: str, folder: Any, config: Mapping[str, Any]):
        self._module = importlib.import_module(name)
        identity, title = _identity(folder / FILE), paths.absolute(folder).name
        options: dict[str, Any] = {"project": project, "config": dict(config), "resume": "allow"}
        if name == "wandb":
            options |= {"id": identity, "name": title}
            options |= {} if paths.is_bucket(folder) else {"dir": str(folder)}  # its files are local ones
        else:
            options |= {"name": f"{title}-{identity}"}  # by which it is resumed
        self._module.init(**options)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        self._module.log(dict(values), step=step)

    def close(self) -> None:
        self._module.finish()


def opener(config: ml_collections.ConfigDict, folder: Any) -> Callable[[], Tracker] | None:
    """For `MetricsWriter`: None where a config names no tracker."""
    name, project = config.tracker.name, config.tracker.project
    return None if name == "none" else lambda: Tracker(name, project, folder, config.to_dict())


def _identity(path: Any) -> str:
    """Of the run of a folder: drawn once."""
    if not path.exists():
        path.write_text(json.dumps({"id": uuid.uuid4().hex[:8]}) + "\n")
    return json.loads(path.read_text())["id"]
