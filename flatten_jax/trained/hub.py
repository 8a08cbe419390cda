"""Sharing a trained model: a folder of weights, config and model card; by itself, or on the Hugging Face Hub.

The folder holds `model.safetensors` (the public form of weights), `config.json` and `README.md`. Only up- and downloads
need huggingface_hub: pip install 'flatten_jax[hub]'.
"""

import dataclasses
import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import flax.linen as nn

from flatten_jax import paths
from flatten_jax._version import __version__
from flatten_jax.attention import attention_options
from flatten_jax.data.augment import RESIZE_MODES, RESIZE_RATIO
from flatten_jax.models import create_model, model_options
from flatten_jax.models.images import IMAGENET_MEAN, IMAGENET_STD
from flatten_jax.models.registry import MODELS
from flatten_jax.segmentation.model import Segmenter
from flatten_jax.trained import model_card
from flatten_jax.weights.files import OF_TRAINING, save_weights, sha256
from flatten_jax.weights.load import load_weights

WEIGHTS, CONFIG, CARD = "model.safetensors", "config.json", "README.md"
FILES = (WEIGHTS, CONFIG, CARD)
# Options that do not change what the weights mean; size and classes are told in any case.
_OF_USE = {"num_classes", "image_size", *OF_TRAINING}


def save_pretrained(
    folder: str | os.PathLike,
    model: nn.Module,
    variables: Mapping[str, Any],
    *,
    class_names: Sequence[str] | None = None,
    resize_ratio: float = RESIZE_RATIO,
    resize: str = RESIZE_MODES[0],
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
    evaluation: Mapping[str, float] | None = None,
    dataset: str | None = None,
    origin: Mapping[str, str] | None = None,
    licence: str | None = None,
    overwrite: bool = False,
) -> Any:
    """Weights, config and model card in a folder, for `from_pretrained` and `push_to_hub`.

    Args:
        folder: made where it is not there; other files in it stay. Also of a bucket, gs://.
        model: from `create_model`.
        variables: {"params": ...} of it, and its other collections.
        class_names: one for each label.
        resize_ratio: of the evaluation's resize over the model's size, for predictions (`eval.resize_ratio` of a run).
        resize: how pictures are resized (`eval.resize` of a run).
        mean: of the pictures' channels (`data.mean` of a run).
        std: likewise (`data.std`).
        evaluation: of these weights, as a run has it: {"eval/acc1": percent, "eval/acc5", "eval/loss", "eval/count"}.
        dataset: that it is about, for the card.
        origin: where the weights come from: {what: value}.
        licence: of the weights, an identifier of the Hub such as "apache-2.0".
        overwrite: replace the three files where they exist; otherwise that is a ValueError.

    Returns:
        the folder.
    """
    folder = paths.path_of(folder)
    if class_names is not None and len(class_names) != model.num_classes:
        raise ValueError(f"{len(class_names)} class_names were given for a model of {model.num_classes} classes")
    if (folder / "checkpoints").exists():  # its config.json is another
        raise ValueError(f"{folder} is a run's folder: share it into another one")
    there = [name for name in FILES if (folder / name).exists()]
    if there and not overwrite:
        raise ValueError(f"{folder} holds {', '.join(there)} already: choose another, or overwrite=True (--overwrite)")
    name, options = describe_model(model)
    config = {
        "library": "flatten_jax",
        "library_version": __version__,
        "model": name,
        "options": options,
        "resize_ratio": resize_ratio,
        "resize": resize,
        "mean": list(mean),
        "std": list(std),
        "class_names": None if class_names is None else list(class_names),
        "evaluation": None if evaluation is None else dict(evaluation),
        "dataset": dataset,
        "origin": dict(origin or {}),
        "licence": licence,
    }
    with paths.writing(folder) as place:
        save_weights(place / WEIGHTS, variables, name, options, overwrite=overwrite)
        config["sha256"] = sha256(place / WEIGHTS)
        (place / CONFIG).write_text(json.dumps(config, indent=2) + "\n")
        (place / CARD).write_text(model_card.render(config, model), encoding="utf-8")
    return folder


def from_pretrained(
    source: str | os.PathLike,
    revision: str | None = None,
    *,
    sha256: str | None = None,
    new_head: bool = False,
    **options: Any,
) -> tuple[nn.Module, dict[str, Any]]:
    """(model, variables) of a shared folder, of a repository of the Hugging Face Hub, or of a run.

    Args:
        source: a folder that `save_pretrained` wrote, or "owner/name" on the Hub; or a run's folder, one of its
            checkpoints, or a file that `load_weights` takes and whose model can be guessed.
        revision: branch, tag or commit of the repository. A whole commit hash pins every byte.
        sha256: what the SHA-256 of the weights has to be, beside that which config.json says.
        new_head: make the classifier new, with num_classes=.
        **options: of `create_model`, where they shall differ: image_size (position encodings are resampled), dtype,
            num_classes, drop_path, features_only, ...

    Raises:
        FileNotFoundError, ValueError: nothing there, or a folder of another kind; another revision or hash than asked
            for; weights that are not those that config.json was written with.
        ImportError: not a folder, and huggingface_hub is not installed.
    """
    folder = Path(source).expanduser() if not paths.is_bucket(source) else paths.path_of(source)
    if not folder.exists():
        source, _, named = str(source).removeprefix("hf://").partition("@")
        if not re.fullmatch(r"[\w.-]+/[\w.-]+", source):
            raise FileNotFoundError(f"no folder {source}, and it is not the name of a repository (owner/name)")
        folder = download(source, revision or named or None)
    elif revision is not None:
        raise ValueError(f"{source} is a local folder, which has no {revision=}: leave it out")
    if not (folder / CONFIG).is_file() or (folder / "checkpoints").is_dir():
        from flatten_jax.trained.load import model_of_source  # which builds on this file

        if sha256 is not None:
            raise ValueError(f"{source} is not a shared folder, whose weights have a {sha256=}: leave it out")
        folder = folder if folder.is_dir() else paths.fetched(folder)
        model = model_of_source(folder, **options)
        return model, load_weights(folder, model, new_head=new_head)
    folder = paths.fetched(folder, FILES)
    config = read_config(folder, sha256)
    model = create_model(config["model"], **{**config["options"], **options})
    return model, load_weights(folder / WEIGHTS, model, new_head=new_head)


def download(repo_id: str, revision: str | None = None) -> Path:
    """The local copy of a repository of the Hub; see `from_pretrained`."""
    hub = _huggingface_hub(f"there is no folder {repo_id}; to look for it on the Hugging Face Hub")
    try:
        folder = hub.snapshot_download(
            repo_id,
            revision=revision,
            allow_patterns=[*FILES],
            library_name="flatten_jax",
            library_version=__version__,
        )
    except (OSError, ValueError) as error:
        said = f" at {revision=}" if revision else ""
        raise OSError(f"{repo_id} is no folder, and the Hugging Face Hub did not give it{said}: {error}") from error
    folder = Path(folder)
    # The Hub's cache names a copy by the commit that it is of.
    if revision and re.fullmatch("[0-9a-f]{40}", revision) and folder.name != revision:
        raise ValueError(f"{repo_id} was asked for at commit {revision}, and came as {folder.name}")
    return folder


def read_config(folder: str | os.PathLike, expected_sha256: str | None = None) -> dict[str, Any]:
    """`config.json` of a shared folder whose weights have the hash that it says, and the one that is expected."""
    folder = Path(folder)
    missing = [name for name in (CONFIG, WEIGHTS) if not (folder / name).is_file()]
    if missing:
        hint = "; to share a run: flatten-jax share RUN FOLDER" if (folder / "checkpoints").is_dir() else ""
        raise FileNotFoundError(f"{folder} is not a shared model, it has no {' and no '.join(missing)}{hint}")
    try:
        config = json.loads((folder / CONFIG).read_text())
        said = config["sha256"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{folder / CONFIG} is not the config of a flatten_jax model: {error!r}") from error
    found = sha256(folder / WEIGHTS)
    for wanted, who in ((said, f"{CONFIG} says"), (expected_sha256, "sha256= says")):
        if wanted not in (None, found):
            raise ValueError(
                f"{folder / WEIGHTS} has SHA-256 {found}, {who} {wanted}: the file is damaged or was exchanged; "
                "get both files again"
            )
    return config


def push_to_hub(
    folder: str | os.PathLike,
    repo_id: str,
    *,
    revision: str | None = None,
    private: bool | None = None,
    message: str = "Upload a flatten_jax model",
) -> str:
    """Upload a folder that `save_pretrained` wrote; the repository is made where it is not there.

    Who uploads is known to huggingface_hub (`hf auth login`, or HF_TOKEN).

    Args:
        folder: that `save_pretrained` wrote.
        repo_id: "owner/name".
        revision: a branch, made where it is not there; default: main.
        private: of a new repository.
        message: of the commit.

    Returns:
        the address of the commit.
    """
    folder = paths.fetched(paths.path_of(folder), FILES)
    read_config(folder)  # what is damaged here is not spread
    api = _huggingface_hub("to share on the Hugging Face Hub").HfApi(
        library_name="flatten_jax", library_version=__version__
    )
    api.create_repo(repo_id, private=private, exist_ok=True)
    if revision is not None:
        api.create_branch(repo_id, branch=revision, exist_ok=True)
    commit = api.upload_folder(
        repo_id=repo_id,
        folder_path=str(folder),
        revision=revision,
        commit_message=message,
        allow_patterns=[*FILES],
    )
    return str(commit.commit_url)


def describe_model(model: nn.Module) -> tuple[str, dict[str, Any]]:
    """(name, options) with which `create_model` makes this model again, by the name that needs the fewest options.

    Every option of every attention in use is among them, so that the defaults of later versions, and those of other
    attentions with an option of that name, change nothing. Options that do not belong to the weights, such as `dtype`,
    are left out; image_size and num_classes are not.
    """
    if isinstance(model, Segmenter):
        raise ValueError("segmenters have no shared form yet: flatten-jax export writes mmsegmentation's names")
    options = _attention_settings(model)
    candidates = []
    for name, entry in MODELS.items():
        published = entry.settings.get("attn_options", {})
        if type(model) is entry.family and published.keys() & _applicable(model) <= options.keys():
            known = model_options(name)
            fields = {f.name for f in dataclasses.fields(model)} - {"attn_options", "parent", "name"} - _OF_USE
            differ = {k: getattr(model, k) for k in fields if getattr(model, k) != known[k]}
            others = sum(options[k] != known.get(k, options[k]) for k in options)
            candidates.append((len(differ) + others, name, differ))
    if not candidates:
        raise ValueError(f"{type(model).__name__} is not a model of create_model, which alone can be shared")
    _, name, differ = min(candidates, key=lambda candidate: candidate[0])
    own = dict(sorted({**differ, **options}.items()))
    return name, {**own, "image_size": model.image_size, "num_classes": model.num_classes}


def _attention_settings(model: nn.Module) -> dict[str, Any]:
    """Every option of every attention of a model, as `create_model` takes them: also those left at their defaults.

    Where the attentions of different stages have different defaults for one, it is a tuple of an entry for each stage
    (in DeiT, block), None where no attention has it. Where those of one stage do, no value says both: it is left out.
    """
    stages = model.attentions()
    entries = stages if len(stages) == model.attn_entries else [(name,) for names in stages for name in names]
    settings = dict(model.attn_options)
    for option in sorted(_applicable(model) - settings.keys()):
        known = [[attention_options(name) for name in names] for names in entries]
        defaults = [{own[option] for own in stage if option in own} for stage in known]
        if len(set.union(*defaults)) == 1:
            (settings[option],) = set.union(*defaults)
        elif all(len(values) <= 1 for values in defaults):
            settings[option] = tuple(next(iter(values), None) for values in defaults)
    return settings


def _applicable(model: nn.Module) -> set[str]:
    """The options of the attentions of a model."""
    return {option for names in model.attentions() for name in names for option in attention_options(name)}


def _huggingface_hub(purpose: str) -> Any:
    try:
        import huggingface_hub
    except ImportError as error:
        raise ImportError(f"{purpose}: pip install 'flatten_jax[hub]' (huggingface_hub is not installed)") from error
    return huggingface_hub
