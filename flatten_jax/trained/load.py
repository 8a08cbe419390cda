"""A trained model from wherever it lies: a run's folder, one of its checkpoints, a shared folder, a file of weights."""

import dataclasses
import functools
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import flax.linen as nn
import ml_collections

from flatten_jax import paths
from flatten_jax.data import imagenet
from flatten_jax.data.augment import RESIZE_MODES, RESIZE_RATIO
from flatten_jax.models import create_model, init
from flatten_jax.models.images import IMAGENET_MEAN, IMAGENET_STD
from flatten_jax.segmentation.model import Segmenter
from flatten_jax.trained import hub
from flatten_jax.training import checkpoint
from flatten_jax.training.agreement import CLASSES_FILE
from flatten_jax.weights import files
from flatten_jax.weights.load import load_with_report

HUB = "hf://"


@dataclasses.dataclass(frozen=True)
class Trained:
    """A model, its weights, and what is known of them.

    Attributes:
        model: from `create_model`.
        variables: {"params": ...} of it, and its other collections; of a run, the moving average if it has one.
        class_names: one for each label, or None where nothing says them.
        resize_ratio, resize, mean, std: how its evaluation prepares pictures, see `preprocessing`.
        segmentation: of a segmenter the section of that name of its config, how its pictures are prepared; else None.
        evaluation: of these very weights, as the run wrote it, and the `dataset` that it is on; or None.
        origin: where the weights are from: {what: value}.
        said: what was loaded, for people.
    """

    model: nn.Module
    variables: dict[str, Any]
    class_names: tuple[str, ...] | None = None
    resize_ratio: float = RESIZE_RATIO
    resize: str = RESIZE_MODES[0]
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    segmentation: Mapping[str, Any] | None = None
    evaluation: Mapping[str, float] | None = None
    dataset: str | None = None
    origin: Mapping[str, str] = dataclasses.field(default_factory=dict)
    said: str = ""

    @property
    def preprocessing(self) -> dict[str, Any]:
        """What `Predictor` and `hub.save_pretrained` are told: the evaluation's resize and its ratio, mean and std."""
        return {key: getattr(self, key) for key in ("resize_ratio", "resize", "mean", "std")}


def opened(source: str | os.PathLike, *, ema: bool = False) -> tuple[str, Any, nn.Module | None]:
    """What `weights.load` needs of a source that is more than a file.

    Args:
        source: as in `load_trained`.
        ema: refused for folders.

    Returns:
        (what messages call it, or ""; a file, or variables {"params": ...} of a run; the model that these are of, if
        the run says it).
    """
    path = located(source)
    if not path.is_dir():
        return str(source) if paths.is_bucket(source) else "", path, None
    if ema:
        raise ValueError(f"ema=True is for files; of {source} the moving average is taken anyway, where there is one")
    if (path / hub.WEIGHTS).is_file():
        hub.read_config(path)
        return str(source) if paths.is_bucket(source) else "", path / hub.WEIGHTS, None
    folder, step = checkpoint.find(path)
    variables, averaged = checkpoint.Checkpoints(folder, read_only=True).restore_weights(step)
    return str(folder / str(step)), variables if averaged is None else averaged, model_of_run(folder)


def located(source: str | os.PathLike) -> Any:
    """The path of a source: "~" is the home, and "hf://owner/name@revision" is fetched from the Hugging Face Hub.

    From a bucket, gs://, a file or a shared folder is fetched too; a run's checkpoints are read there.

    Raises:
        FileNotFoundError: nothing there.
    """
    if str(source).startswith(HUB):
        repo_id, _, revision = str(source).removeprefix(HUB).partition("@")
        return hub.download(repo_id, revision or None)
    path = paths.path_of(source).expanduser()
    if not path.exists():
        raise FileNotFoundError(
            f"there is no {source}: give a run's folder, a shared folder, a file of weights or {HUB}owner/name"
        )
    if (path / hub.WEIGHTS).is_file():
        return paths.fetched(path, hub.FILES)
    return path if path.is_dir() else paths.fetched(path)


def load_trained(
    source: str | os.PathLike,
    name: str | None = None,
    *,
    ema: bool = False,
    key: str | None = None,
    best: bool = False,
    **options: Any,
) -> Trained:
    """Opens `source`.

    Args:
        source: a run's folder (the newest checkpoint), one of its checkpoints/<step>, a folder of
            `hub.save_pretrained`, a file that `load_weights` takes, or "hf://owner/name@revision" on the Hugging Face
            Hub (without a revision: main); or one of these in a bucket, gs://.
        name: of the model, where `source` does not say it or it cannot be guessed from shapes.
        ema: take the moving average that a file holds.
        key: where in a file the weights are, see `load_weights`.
        best: of a run, the kept checkpoint that was evaluated best instead of the newest.
        **options: of `create_model`, where they differ from what `source` says.

    Raises:
        FileNotFoundError, ValueError: nothing there, or weights that do not fit the model.
    """
    path = located(source)
    if path.is_dir() and (ema or key):
        raise ValueError(
            f"ema=True and key= are for files; of {source} the moving average is taken anyway, where there is one"
        )
    if (path / hub.WEIGHTS).is_file():
        trained = _of_shared(path, name, options)
    elif path.is_dir():
        trained = _of_run(path, name, best, options)
    else:
        trained = _of_file(path, name, options, ema=ema, key=key)
    if paths.is_bucket(source):  # of which a copy was read
        trained = dataclasses.replace(trained, said=trained.said.replace(str(path), str(source)))
    return _named(trained, source)


def model_of_source(path: Any, **options: Any) -> nn.Module:
    """The model of a run, or of a file of weights, with some options otherwise."""
    if not path.is_dir():
        return files.model_of(path, **options).model
    model = model_of_run(checkpoint.find(path)[0], **options)
    if model is None:
        raise ValueError(f"{path} has no config.json to tell the model: make it, and give load_weights the folder")
    return model


def model_of_run(folder: Any, **options: Any) -> nn.Module | None:
    """The model that the config of a run says, with some options otherwise, given its checkpoints' folder; or None."""
    described = checkpoint.model_of_run(folder)
    if described is None:
        return None
    config, create = json.loads((_home(folder) / "config.json").read_text()), create_model
    if config.get("segmentation", {}).get("head"):
        from flatten_jax.segmentation import choose  # which needs what training needs, as runs do

        create = functools.partial(choose.create, ml_collections.ConfigDict(config))
    return create(**{"name": described[0], **described[1], **options})


def random_weights(name: str, **options: Any) -> Trained:
    """A model that has learned nothing, to try what is done with one."""
    model = create_model(name, **options)
    variables = init(model)
    return _named(Trained(model, variables, said=f"WARNING: {name} has RANDOM weights; its answers mean nothing"), name)


def _named(trained: Trained, source: Any) -> Trained:
    """With ImageNet's classes where nothing says others, and checked."""
    names = trained.class_names
    if names is None and trained.model.num_classes == 1000:
        names = tuple(imagenet.class_names())
        trained = dataclasses.replace(trained, said=f"{trained.said}\n  note: 1000 classes are taken for ImageNet's")
    if names is not None and len(names) != trained.model.num_classes:
        raise ValueError(f"{source} names {len(names)} classes, and the model has {trained.model.num_classes}")
    return dataclasses.replace(trained, class_names=names)


def _of_shared(path: Path, name: str | None, options: Mapping[str, Any]) -> Trained:
    config = hub.read_config(path)
    model = create_model(name or config["model"], **{**config["options"], **options})
    variables, report = load_with_report(path / hub.WEIGHTS, model)
    unchanged = not options  # an evaluation at another image size is another evaluation
    return Trained(
        model=model,
        variables=variables,
        class_names=None if config["class_names"] is None else tuple(config["class_names"]),
        resize_ratio=config["resize_ratio"],
        **_told(config, "resize", "mean", "std"),
        evaluation=config["evaluation"] if unchanged else None,
        dataset=config["dataset"],
        origin=config["origin"],
        said=f"weights of {report}",
    )


def _told(config: Mapping[str, Any], *keys: str) -> dict[str, Any]:
    """Those of the keys that a config has, which one of before may not; lists as tuples."""
    return {key: tuple(config[key]) if isinstance(config[key], list) else config[key] for key in keys if key in config}


def _of_run(path: Any, name: str | None, best: bool, options: Mapping[str, Any]) -> Trained:
    folder, step = checkpoint.find(path)
    checkpoints = checkpoint.Checkpoints(folder, read_only=True)
    if best and not path.name.isdigit() and (found := checkpoints.best()):
        step = found[0]
    described = model_of_run(folder)
    if name is None and described is None:
        raise ValueError(f"{path} has no config.json to tell the model: give its name (--model)")
    model = model_of_run(folder, **options) if name is None else create_model(name, **options)
    variables, said = checkpoint.load_weights(folder / str(step), model)

    home = _home(folder)
    config = json.loads((home / "config.json").read_text()) if described else {}
    classes = home / CLASSES_FILE
    unchanged = described is not None and model == described
    return Trained(
        model=model,
        variables=variables,
        class_names=tuple(json.loads(classes.read_text())) if classes.exists() else None,
        **_told(config.get("eval", {}), "resize_ratio", "resize"),
        **_told(config.get("data", {}), "mean", "std"),
        segmentation=config["segmentation"] if isinstance(model, Segmenter) else None,
        evaluation=checkpoints.evaluation(step) if unchanged else None,
        dataset=_dataset(config),
        origin={"source": f"step {step} of the run {paths.absolute(home).name}"},
        said=said,
    )


def _home(folder: Any) -> Any:
    """Where a run's config.json is, given its checkpoints' folder."""
    return folder if (folder / "config.json").exists() else folder.parent


def _dataset(config: Mapping[str, Any]) -> str | None:
    """What the data of a run are called: of a folder its own name."""
    data = config.get("data", {})
    return Path(data["folder"]).name or "folder" if data.get("name") == "folder" else data.get("name")


def _of_file(path: Path, name: str | None, options: Mapping[str, Any], **choice: Any) -> Trained:
    model = files.model_of(path, name, **choice, **options).model
    variables, report = load_with_report(path, model, **choice)
    origin = files.origin_of(path, **choice)
    return Trained(model=model, variables=variables, origin=origin, said=f"weights of {report}")
