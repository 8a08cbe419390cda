"""Models by name: `create_model`, `list_models`, and the options of each."""

import dataclasses
import difflib
import fnmatch
from collections.abc import Iterable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from flatten_jax.attention import MIXERS, mixer_options
from flatten_jax.models.backbone import Backbone
from flatten_jax.models.flops import multiply_adds
from flatten_jax.models.registry import ALIASES, MODELS, PUBLISHED, Entry, Published

__all__ = [
    "PUBLISHED",
    "Backbone",
    "Published",
    "abstract_variables",
    "create_model",
    "dummy_images",
    "list_models",
    "model_options",
    "multiply_adds",
    "parameters_left_out",
]


def list_models(pattern: str = "*") -> list[str]:
    """Names of all models that match a shell pattern, sorted: list_models("flatten_pvt_*")."""
    return sorted(fnmatch.filter(MODELS, pattern))


def model_options(name: str) -> dict[str, Any]:
    """What `create_model` takes for this model beside its name, with the values that it has by default.

    Architecture (`depths`, `embed_dim`, ...), `attn_type`, and the options of every attention that could be chosen.
    """
    entry = _lookup(name)
    fields = {
        f.name: f.default for f in dataclasses.fields(entry.family) if f.name not in ("attn_options", "parent", "name")
    }
    attention = {k: v for letter in MIXERS for k, v in mixer_options(letter).items()}
    return {**attention, **fields, **entry.settings}


def create_model(name: str, **options: Any) -> Backbone:
    """A Linen module by name: `logits = model.apply(variables, images, train=False)`.

    Images are (B, height, width, 3), normalised; logits (B, num_classes), float32. Training needs the random stream
    "dropout" when `drop_path` > 0. Parameters come from `model.init`, or from `flatten_jax.from_torch`. What else a
    model gives (features, maps of its levels) is said in `models.backbone.Backbone`.

    Args:
        name: one of `list_models()`, or the release's name for it, such as "flatten_swin_tiny_patch4_224".
        **options: overrides of `model_options(name)`, among them
            num_classes (0: pooled features), drop_path, remat and remat_policy, scan, features_only, out_indices and
            feature_norm, and
            image_size: int or (height, width), default 224, or 384 where the name says so.
            dtype: of the computation, such as jnp.bfloat16 (default float32).
            attn_type: letters of the attentions, "L" focused linear and "S" softmax; one per stage ("LLSS").
            window_size, softmax_window_size (Swin), la_split_size, split_size (CSwin), la_sr_ratios, sr_ratios (PVT).
            focusing_factor, kernel_size, use_dwc, use_positional_encoding: of focused linear attention.

    Raises:
        ValueError: unknown name or option (the nearest is named), an option without effect, a size that does not fit.
    """
    entry = _lookup(name)
    known = model_options(name)
    for option in options:
        if option not in known:
            raise ValueError(f"{name} has no option {option!r}{_nearest(option, known)}")
    fields = {f.name for f in dataclasses.fields(entry.family)}
    settings = {**entry.settings, **{k: _static(v) for k, v in options.items() if k in fields}}
    if isinstance(settings.get("image_size"), int):
        settings["image_size"] = (settings["image_size"],) * 2
    if settings.get("dtype") is not None:
        settings["dtype"] = jnp.dtype(settings["dtype"])
    attn_options = {k: v for k, v in options.items() if k not in fields}
    model = entry.family(**settings, attn_options=nn.FrozenDict(attn_options))

    applicable = {option for letter in set("".join(model.block_letters())) for option in mixer_options(letter)}
    idle = model.idle_options() | (set(attn_options) - applicable)
    for option in options:
        # A value that is the default anyway may be repeated, as configs do.
        if option in idle and (option in attn_options or getattr(model, option) != known[option]):
            raise ValueError(f"{option!r} has no effect on {name} with {_cause(model, option)}: leave it out")
    abstract_variables(model)  # a wrong size or pattern is refused here, with its own message, not in a training step
    return model


def dummy_images(model: nn.Module, batch_size: int = 1) -> jax.Array:
    """Zeros of the shape a model takes, for `model.init`."""
    return jnp.zeros((batch_size, *model.image_size, 3), jnp.float32)


def abstract_variables(model: nn.Module) -> dict[str, Any]:
    """The model's variables as shapes and dtypes; nothing is computed."""
    return jax.eval_shape(model.init, jax.random.key(0), jax.eval_shape(lambda: dummy_images(model)))


def parameters_left_out(model: Backbone) -> set[tuple[str, ...]]:
    """Paths of the parameters that the model's classifier has and the model has not.

    Empty for classifiers. Without a head (num_classes=0) and with features_only they are what a classification
    checkpoint may hold in excess: head, final norm, levels beyond the last of `out_indices`. What a model has and its
    classifier has not (`norm0`, ... of feature_norm) no such checkpoint holds.
    """
    classifier = model.clone(
        num_classes=model.num_classes or 1000, features_only=False, out_indices=(), feature_norm=False
    )
    own, full = (_paths(abstract_variables(m)["params"]) for m in (model, classifier))
    return full - own


def _paths(params: Any) -> set[tuple[str, ...]]:
    return {tuple(key.key for key in path) for path, _ in jax.tree_util.tree_leaves_with_path(params)}


def _cause(model: Backbone, option: str) -> str:
    if option in ("out_indices", "feature_norm"):
        return f"features_only={model.features_only}"
    if option == "remat_policy":
        return f"remat={model.remat}"
    return f"attn_type={model.attn_type!r}"


def _lookup(name: str) -> Entry:
    name = ALIASES.get(name, name)
    if name not in MODELS:
        raise ValueError(f"unknown model {name!r}{_nearest(name, MODELS)}")
    return MODELS[name]


def _nearest(word: str, known: Iterable[str]) -> str:
    known = sorted(known)
    close = difflib.get_close_matches(word, known, n=1)
    return f"; did you mean {close[0]!r}?" if close else f"; choose from {', '.join(known)}"


def _static(value: Any) -> Any:
    """Lists as tuples: attributes of a Linen module must be hashable."""
    return tuple(value) if isinstance(value, list) else value
