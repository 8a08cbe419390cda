"""Whether weights are of the kind of model that they are loaded into, and what is said where they are not."""

import difflib
import re
from collections.abc import Container, Iterable, Mapping
from typing import Any

import flax.linen as nn
import numpy as np

from flatten_jax.attention import attention_options
from flatten_jax.models import create_model
from flatten_jax.models.backbone import Backbone
from flatten_jax.segmentation.model import Segmenter, backbone_of
from flatten_jax.weights.fingerprint import attentions_in, pattern_of
from flatten_jax.weights.guess import IN_CONFIG, registered, told_by_config
from flatten_jax.weights.match import Shape
from flatten_jax.weights.names import likely

_WAYS_OUT = (
    "create_model(..., attn_type={!r}) is what they are of, new_attention=True (--new-attention of convert) inherits "
    "the rest and makes the attention new"
)


def check_same_kind(label: str, name: str, saved: nn.Module, model: nn.Module) -> None:
    """Weights may have the right shapes and still mean another function; our own files say which."""
    if type(saved) is not type(model):
        raise ValueError(f"{label} holds {name}, a {type(saved).__name__}; the model is a {type(model).__name__}")
    if isinstance(saved, Segmenter):
        if saved.head != model.head:
            raise ValueError(f"{label} holds {name} with head={saved.head!r}, the model has {model.head!r}")
        return check_same_kind(label, f"the backbone of {name}", saved.backbone, model.backbone)
    if saved.attentions() != model.attentions():
        raise ValueError(
            f"{label} holds {name} with attn_type={saved.attn_type!r} (the model has {model.attn_type!r}): "
            f"{_WAYS_OUT.format(saved.attn_type)}"
        )
    theirs, ours = _meaning(saved), _meaning(model)
    differ = [f"{key}={theirs[key]!r} (the model has {ours[key]!r})" for key in theirs if theirs[key] != ours[key]]
    if differ:
        raise ValueError(f"{label} holds {name} with {', '.join(differ)}: give create_model the same options")


def _meaning(model: nn.Module) -> dict[str, Any]:
    """What leaves no trace in names and shapes; of the attentions' options one value, or one for each block."""
    model = backbone_of(model)
    values: dict[str, list[Any]] = {}
    for i, names in enumerate(model.attentions()):
        for j, name in enumerate(names):
            for option, default in attention_options(name).items():
                values.setdefault(option, []).append(model.options_of(i, j).get(option, default))
    options = {option: of[0] if all(value == of[0] for value in of) else of for option, of in values.items()}
    return {"num_heads": getattr(model, "num_heads", None), **options}


def with_attentions_of(label: str, arrays: Mapping[str, np.ndarray], model: Backbone) -> Backbone:
    """`model` with the attentions whose names the entries of a PyTorch state dict have."""
    found = attentions_in(model, {name: array.shape for name, array in arrays.items()})
    if any(attention is None for stage in found for attention in stage):
        raise ValueError(f"no known attention has the names of the blocks of {label}: its weights cannot be inherited")
    options = {key: value for stage in found for attention in stage for key, value in attention.options.items()}
    names = [tuple(attention.attention for attention in stage) for stage in found]
    if names == model.attentions():
        return model
    return model.clone(attn_type=pattern_of(names), attn_options=nn.FrozenDict({**model.attn_options, **options}))


def head_hint(head: set[str], given: Mapping[str, Shape], wanted: Mapping[str, Shape]) -> str:
    classes = [(given[n][0], wanted[n][0]) for n in head if n.endswith("bias") and given.get(n, wanted[n]) != wanted[n]]
    if not classes:
        return ""
    theirs, ours = classes[0]
    return (
        f"\n  the weights have {theirs} classes, the model {ours}: new_head=True (--new-head, of main.py "
        f"--config.init_new_head=True) makes a new head and keeps the rest, "
        f"create_model(..., num_classes={theirs}) takes theirs"
    )


def attention_hint(given: Mapping[str, Shape], wanted: Mapping[str, Shape], model: nn.Module) -> str:
    """Which attentions the weights look like, where their names say others than the model has."""
    if given.keys() == wanted.keys() or isinstance(model, Segmenter):
        return ""
    found = [tuple(a and a.attention for a in stage) for stage in attentions_in(model, given)]
    if found == model.attentions() or not all(name for stage in found for name in stage) or not any(found):
        return ""
    theirs = pattern_of(found)
    return f"\n  these are names of attn_type={theirs!r}, the model has {model.attn_type!r}: {_WAYS_OUT.format(theirs)}"


# What two models of one kind may differ in: further hints say the way from one to the other.
_LOOSE = {
    *("attn_options", "attn_type", "drop_path", "dtype", "feature_norm", "features_only", "image_size", "num_classes"),
    *("out_indices", "remat", "remat_policy", "scan"),
}


def another_model(arrays: Mapping[str, np.ndarray], model: nn.Module) -> str:
    """Which other registered model has the names and shapes of the weights; "" where it is this one, or none has."""
    if not isinstance(model, Backbone):
        return ""
    try:
        found = registered(likely(arrays)[0])
    except ValueError:
        return ""
    if found is None:
        return ""
    name, options = found
    theirs = create_model(name, **options)
    fields = type(model).__dataclass_fields__.keys() - _LOOSE - {"parent", "name"}
    if type(theirs) is type(model) and all(getattr(theirs, key) == getattr(model, key) for key in fields):
        return ""
    said = "".join(f", {key}={value!r}" for key, value in options.items())
    return f"; the weights are of a {name}: create_model({name!r}{said}) (--model {name}) takes them"


# What names say of models that are not here, or of an option that is: (pattern, what it is and what to do).
_FOREIGN = (
    (
        r"dist_token|head_dist\.",
        'a distilled DeiT, with a second token and head: create_model("deit_t_distilled") or another size of it',
    ),
    (
        r"(^|\.)(reg_token|register_tokens)$",
        "a ViT with register tokens: not in this library, take one without",
    ),
    (
        r"\.(ls\d\.gamma|ls\d|gamma_\d)$",
        "a model with LayerScale, as DeiT III, CaiT or DINOv2 are: the model here has none",
    ),
    (r"attn\.(logit_scale|cpb_mlp\.)", "a Swin V2, which is not in this library"),
    (r"mask_token|decoder_(embed|blocks|pos_embed)", "a model of masked pre-training: take its encoder alone"),
    (r"attention\.(self|attention)\.query\.", "a model of Hugging Face's transformers: timm's file of it can be read"),
    (r"^features\.\d+\.", "a model of torchvision: timm's file of it can be read"),
    (r"^fc_norm\.", "a ViT that is normalised after pooling: create_model(..., fc_norm=True)"),
    (r"^norm\d\.", "a backbone with norms on its maps: create_model(..., features_only=True, feature_norm=True)"),
)


def foreign_hint(given: Iterable[str], wanted: Container[str] = ()) -> str:
    """What model the weights are of, where their surplus names say it."""
    surplus = [name for name in given if name not in wanted]
    said = [
        f"\n  {name} says that they are of {what}"
        for pattern, what in _FOREIGN
        if (name := next((name for name in surplus if re.search(pattern, name)), None))
    ]
    return "".join(said)


def strangers(what: str, given: Mapping[str, Shape], wanted: Mapping[str, Shape]) -> None:
    """ValueError where not one name is the model's: one of each side by side says more than two lists."""
    if set(given) & set(wanted) or not given:
        return
    pairs = ((difflib.get_close_matches(name, given, n=1, cutoff=0.4), name) for name in sorted(wanted)[:20])
    close, name = next(((found[0], name) for found, name in pairs if found), (next(iter(given)), next(iter(wanted))))
    raise ValueError(
        f"{what}: none of its {len(given)} names is one of the model's {len(wanted)}; "
        f"there is {close!r}, and wanted is {name!r}{foreign_hint(given, wanted)}"
    )


def other_options(extra: Any, model: nn.Module) -> tuple[str, ...]:
    """A note for each option that the original's config in a file says, no shape shows, and the model has otherwise."""
    ours = _meaning(model)
    return tuple(
        f"the config in the file says {'.'.join(IN_CONFIG[option])} {value}, the model has {option}={ours[option]}"
        for option, value in told_by_config(extra).items()
        if option in ours and ours[option] != value
    )


def describe(model: nn.Module) -> str:
    height, width = model.image_size
    return f"{type(model).__name__} of {height} x {width} pixels and {model.num_classes} classes"
