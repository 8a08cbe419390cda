"""Models by name: `create_model`, `list_models`, and the options of each."""

import dataclasses
import difflib
import fnmatch
import functools
import os
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from flatten_jax import runtime
from flatten_jax.attention import ATTENTIONS, attention_options
from flatten_jax.models.backbone import Backbone
from flatten_jax.models.images import dummy_images
from flatten_jax.models.registry import ALIASES, MODELS, Entry, where_weights_are
from flatten_jax.models.stack import of_all, one_of_each
from flatten_jax.ops.derivative import forward_mode
from flatten_jax.ops.platform import plain_forms

_NO_OPTIONS = {"attn_options", "parent", "name"}


def list_models(pattern: str = "*") -> list[str]:
    """Names of all models that match a shell pattern, sorted: list_models("flatten_pvt_*")."""
    return sorted(fnmatch.filter(MODELS, pattern))


def model_options(name: str, attn_type: str | None = None) -> dict[str, Any]:
    """The options that `create_model` takes for a model, with their defaults.

    They are the architecture (`depths`, `embed_dim`, ...), `attn_type`, and the options of the attentions in use.

    Args:
        name: of a model.
        attn_type: another than the model's own. The options are then those of its attentions.

    Raises:
        ValueError: unknown name, or a pattern that does not fit the model.
    """
    entry = _lookup(name)
    fields = {f.name: f.default for f in dataclasses.fields(entry.family) if f.name not in _NO_OPTIONS}
    own = {k: v for k, v in entry.settings.items() if k != "attn_options"}
    fields = {**fields, **own, **({} if attn_type is None else {"attn_type": attn_type})}
    model = entry.family(**{**own, "attn_type": fields["attn_type"]})
    defaults = {option: default for name in _used(model) for option, default in attention_options(name).items()}
    published = {k: v for k, v in entry.settings.get("attn_options", {}).items() if k in defaults}
    return {**defaults, **published, **fields}


def _used(model: Backbone) -> list[str]:
    """The attentions of a model, sorted."""
    return sorted({name for names in model.attentions() for name in names})


def create_model(name: str, **options: Any) -> Backbone:
    """A Linen module by name: `logits = model.apply(variables, images, train=False)`.

    Images are (B, height, width, 3), normalised; logits (B, num_classes), float32. Training needs the random stream
    "dropout" when `drop_path` > 0. Variables come from `flatten_jax.init`, or `load_weights`; `from_pretrained` gives
    model and variables. What else a model gives (features, maps of its levels) is said in `models.backbone.Backbone`.

    Args:
        name: one of `list_models()`, or the release's name for it, such as "flatten_swin_tiny_patch4_224".
        **options: overrides of `model_options(name)`, which lists them all. The most used:

            - `image_size`: int or (height, width), default 224, or 384 where the name says so.
            - `num_classes`: 0 gives pooled features.
            - `attn_type`: one of `list_attentions()` for all blocks, or one for each stage,
              "rala,rala,softmax,softmax". `flatten_jax.attention.pattern` has more patterns. The release's letters are
              understood, "LLSS".
            - `features_only`, `out_indices`, `feature_norm`: maps for dense prediction.
            - `dtype`: of the computation, such as jnp.bfloat16 (default float32).
            - `drop_path`, `remat`, `remat_policy`, `scan`: for training.
            - `window_size`, `softmax_window_size` (Swin), `la_split_size`, `split_size` (CSwin), `la_sr_ratios`,
              `sr_ratios` (PVT).
            - the options of the attentions (`attention_info(name)`): one value, or a tuple of one for each stage.

    Raises:
        ValueError: unknown name or option (the nearest is named), an option without effect, a size that does not fit,
            an attention that does not fit the model.
    """
    if "/" in name:  # timm's "hf-hub:owner/name"
        raise ValueError(
            f"{name!r} is no name of a model; {_both(name.removeprefix('hf-hub:').removeprefix('hf_hub:'))}"
        )
    entry = _lookup(name)
    _refuse_weights(name, options)
    fields = {f.name for f in dataclasses.fields(entry.family)} - _NO_OPTIONS
    of_attentions = {option: default for a in ATTENTIONS for option, default in attention_options(a).items()}
    for option in options:
        if option not in fields | set(of_attentions):
            raise ValueError(f"{name} has no option {option!r}{_nearest(option, fields | set(of_attentions))}")
    options = {k: _static(v) for k, v in options.items()}
    settings = {**entry.settings, **{k: v for k, v in options.items() if k in fields}}
    if "image_size" in settings:
        settings["image_size"] = _size(settings["image_size"])
    if settings.get("dtype") is not None:
        settings["dtype"] = jnp.dtype(settings["dtype"])
    published = settings.pop("attn_options", {})
    model = entry.family(**settings)
    if "attn_type" in options and options["attn_type"] != model_options(name)["attn_type"]:
        _refuse_unreached(model)
    applicable = {option for attention in _used(model) for option in attention_options(attention)}
    chosen = {k: v for k, v in options.items() if k in of_attentions and k not in fields}
    model = model.clone(
        attn_options=nn.FrozenDict({k: v for k, v in {**published, **chosen}.items() if k in applicable})
    )
    for option, value in model.attn_options.items():
        if isinstance(value, str) and not isinstance(of_attentions[option], str | None):
            raise ValueError(f"{option}={value!r} must be of the kind of its default, {of_attentions[option]!r}")
        if isinstance(value, tuple) and len(value) != model.attn_entries:
            raise ValueError(
                f"{option}={value} needs {model.attn_entries} entries, one for each stage (in DeiT, block)"
            )

    defaults = {f.name: f.default for f in dataclasses.fields(entry.family)} | entry.settings
    idle = model.idle_options()
    for option in options:
        # A value that is the default anyway may be repeated, as configs do.
        if option in chosen and option not in applicable:
            having = [a for a in ATTENTIONS if option in attention_options(a)]
            raise ValueError(
                f"{option!r} has no effect on {name} with {_cause(model, option)}: it is an option of "
                f"{', '.join(having)}; leave it out"
            )
        if option in idle and getattr(model, option) != defaults[option]:
            raise ValueError(f"{option!r} has no effect on {name} with {_cause(model, option)}: leave it out")
    abstract_variables(model)  # a wrong size or pattern is refused here, with its own message, not in a training step
    return model


def _refuse_weights(name: str, options: dict[str, Any]) -> None:
    """Take timm's `pretrained` and `checkpoint_path` out of `options`; ValueError with the call that gives weights."""
    given = {option: options.pop(option) for option in ("pretrained", "checkpoint_path") if option in options}
    for option, value in given.items():
        if isinstance(value, str | os.PathLike) and str(value):
            path = os.fspath(value)
            raise ValueError(
                f"{option}={path!r}: create_model gives a module without weights; {_both(path, options)}, or, by "
                f"name, flatten_jax.load_weights({path!r}, flatten_jax.create_model({_call(name, options)}))"
            )
        if value:
            raise ValueError(
                f"{option}: create_model gives a module without weights. {where_weights_are(ALIASES.get(name, name))}"
            )


def _both(path: str, options: Mapping[str, Any] = MappingProxyType({})) -> str:
    return f"model, variables = flatten_jax.from_pretrained({_call(path, options)}) gives both"


def _call(first: str, options: Mapping[str, Any]) -> str:
    return ", ".join([repr(first), *(f"{option}={value!r}" for option, value in options.items())])


def init(model: nn.Module, seed: int = 0) -> dict[str, Any]:
    """Random variables of a model.

    They are those of `model.init(jax.random.key(seed), images)`, but for their last bits. This takes half the time of
    `jax.jit(model.init)`: the program runs once and is compiled without optimisation, and the forward pass is not
    computed.

    Args:
        model: from `create_model`.
        seed: a whole number.

    Returns:
        {"params": ...}, and the model's other collections, if it has any.
    """
    draw = jax.jit(lambda key: model.init(key, dummy_images(model)), compiler_options=runtime.unoptimised())
    return draw(jax.random.key(seed))


def abstract_variables(model: nn.Module) -> dict[str, Any]:
    """The model's variables as shapes and dtypes; nothing is computed."""
    made_of = tuple(ATTENTIONS[name] for name in _used(model)) if isinstance(model, Backbone) else ()
    return jax.tree.map(lambda leaf: leaf, _abstract_variables(model, made_of, jax.config.jax_enable_x64))


@functools.lru_cache(maxsize=32)
def _abstract_variables(model: nn.Module, *_: Any) -> dict[str, Any]:
    """One trace for all that ask, of one of the blocks that are alike: a deep model takes seconds."""
    with one_of_each() as twins, plain_forms(), forward_mode():
        images = jax.eval_shape(lambda: dummy_images(model))
        shapes = jax.eval_shape(lambda images: model.init(jax.random.key(0), images), images)
    return of_all(shapes, twins)


def parameters_left_out(model: Backbone) -> set[tuple[str, ...]]:
    """Paths of the parameters that the model's classifier has and the model has not.

    Empty for classifiers. Without a head (num_classes=0) and with features_only they are what a classification
    checkpoint may hold in excess: head, final norm, levels beyond the last of `out_indices`. What a model has and its
    classifier has not (`norm0`, ... of feature_norm) no such checkpoint holds.
    """
    own, full = (_paths(abstract_variables(m)) for m in (model, classifier_of(model)))
    return full - own


def parameters_added(model: Backbone) -> set[tuple[str, ...]]:
    """Paths of the parameters that the model has and its classifier has not: norms of the maps of features_only."""
    own, full = (_paths(abstract_variables(m)) for m in (model, classifier_of(model)))
    return own - full


def classifier_of(model: Backbone) -> Backbone:
    """The classifier that a model without head, or a backbone of dense prediction, is a part of."""
    return model.clone(num_classes=model.num_classes or 1000, features_only=False, out_indices=(), feature_norm=False)


def _paths(variables: Any) -> set[tuple[str, ...]]:
    leaves = jax.tree_util.tree_leaves_with_path(variables)
    return {tuple(key.key for key in path[1:]) for path, _ in leaves}  # without the collection


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


def _size(value: Any) -> tuple[int, int]:
    """(height, width) in pixels, of a number or of both."""
    sides = value if isinstance(value, tuple) else (value, value)
    if len(sides) != 2 or any(not isinstance(side, int | np.integer) or side < 1 for side in sides):
        raise ValueError(f"image_size={value!r} must be a whole number of pixels, 224, or (height, width)")
    return int(sides[0]), int(sides[1])


def _refuse_unreached(model: Backbone) -> None:
    """ValueError where numbers leave an attention of a pattern no block, as they may in shallow published models."""
    counted = [entry for entry in model.attn_type.split(",") if "*" in entry]
    written = {name.partition("*")[0].strip() for entry in counted for name in entry.split("+")}
    if not model.attn_type[:1].isupper() and (unreached := sorted(written.difference(_used(model)))):
        depths = [len(stage) for stage in model.attentions()]
        raise ValueError(
            f"attn_type={model.attn_type!r} leaves no block for {', '.join(unreached)}: the stages have {depths} blocks"
        )


def _static(value: Any) -> Any:
    """Lists as tuples: attributes of a Linen module must be hashable."""
    return tuple(value) if isinstance(value, list) else value
