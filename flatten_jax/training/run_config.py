"""The model's part of a config, and the config that a run was started with: a config file itself, FILE:RUN."""

import json
from typing import Any

import ml_collections
from ml_collections import config_dict

from flatten_jax import paths
from flatten_jax.attention import attention_options
from flatten_jax.attention.table import ATTENTIONS
from flatten_jax.models import model_options
from flatten_jax.training.settings import SETTINGS

OF_USE = {"dtype", "drop_path", "remat", "remat_policy", "scan"}  # options of how a model is computed


def model_section(name: str) -> ml_collections.ConfigDict:
    """Every option of a model and of all attentions, to be overridden by name; None leaves the model's own value."""
    own = model_options(name)
    of_attentions = {o: value for a in sorted(ATTENTIONS) for o, value in attention_options(a).items()}
    config = ml_collections.ConfigDict({"name": name})
    for option, default in {**of_attentions, **own}.items():
        kind = str if option == "dtype" else type(default)
        if option in of_attentions and kind is not bool:
            kind = object  # any literal: one value, or a tuple of one for each stage
        config[option] = config_dict.placeholder(kind)
    config.image_size = own["image_size"]
    return config


def blank(section: ml_collections.ConfigDict, kept: set[str]) -> None:
    """Say nothing of the options of a model but those that are kept; each can still be overridden by name."""
    with section.unlocked():
        for option in set(section) - kept:
            kind = section.get_type(option)
            del section[option]
            section[option] = config_dict.placeholder(object if kind is type(None) else kind)


def find_config(path: Any) -> Any:
    """The config.json of a run, given its folder, its checkpoints or one of them, or the file itself; or None."""
    path = paths.path_of(path).expanduser()
    around = [path, *path.parents[:2]]
    if paths.is_bucket(path):
        around = [folder for folder in around if len(folder.parts) > 2]  # which start with / and gs
    places = [path] if path.suffix == ".json" else [folder / "config.json" for folder in around]
    return next((place for place in places if place.is_file()), None)


def get_config(path: str) -> ml_collections.ConfigDict:
    """The config of the run in a folder, with today's options of its model besides those that it knew.

    "PATH,anew" forgets where its own weights were from, and its teacher: the config for another run.
    "PATH,linearize" is that for converting its model (docs/linearize.md): a tenth of the epochs, and of the model only
    how it is computed.
    """
    path, comma, variant = path.rpartition(",")
    if not comma or variant not in ("anew", "linearize"):
        path, variant = f"{path}{comma}{variant}", ""
    file = find_config(path)
    if file is None:
        raise FileNotFoundError(f"{path} holds no config.json of a run")
    try:
        saved = json.loads(file.read_text())
        config = ml_collections.ConfigDict({k: _of_json(v, k) for k, v in saved.items() if k != "model"})
        for key, setting in SETTINGS.items():
            section, _, word = key.rpartition(".")
            if setting.before is not None and word not in config.get(section, ()):
                with config.unlocked():
                    config.update({section: {word: setting.before}})
        config.model = model_section(saved["model"]["name"])
        with config.model.unlocked():
            config.model.update({k: _of_json(v, f"model.{k}") for k, v in saved["model"].items() if v is not None})
    except (TypeError, KeyError, AttributeError, json.JSONDecodeError) as error:
        raise ValueError(f"{file} is not the config of a run ({type(error).__name__}: {error})") from error
    if variant:
        config.update(init_from="", init_new_head=False)
    if variant == "linearize" or (variant and config.distill.teacher):
        for section in ("distill", "linearize"):
            config[section].update({word: SETTINGS[f"{section}.{word}"].before for word in config[section]})
    if variant == "linearize":
        for key in ("epochs", "warmup_epochs", "cooldown_epochs"):
            config.train[key] = config.train[key] / 10
        for section in ("eval", "checkpoint"):
            config[section].every_epochs = min(
                config[section].every_epochs, max(1.0, config[section].every_epochs / 10)
            )
        config.distill.weight = 50.0
        blank(config.model, OF_USE)
    return config


def is_run(path: Any) -> bool:
    """Whether a folder is that of a run, or of one of its checkpoints, and not a shared one."""
    file = find_config(path)
    return file is not None and "train" in json.loads(file.read_text())


def _of_json(value: Any, key: str) -> Any:
    """Lists are tuples, and a duration that was a whole number may now be a fraction."""
    if isinstance(value, dict):
        return {name: _of_json(entry, f"{key}.{name}") for name, entry in value.items()}
    if isinstance(value, list):
        return tuple(_of_json(entry, "") for entry in value)
    return float(value) if key in SETTINGS and SETTINGS[key].kind is float and type(value) is int else value
