"""Names of models -> settings; `create_model` and `list_models`."""

import dataclasses
import difflib
import fnmatch
from collections.abc import Iterable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from flatten_jax.attention import MIXERS, mixer_options
from flatten_jax.models.deit import DeiT
from flatten_jax.models.pvt import PVT

_DEIT = {
    "t": dict(embed_dim=192, num_heads=3),
    "s": dict(embed_dim=384, num_heads=6),
    "b": dict(embed_dim=768, num_heads=12),
}
_PVT = {
    "t": dict(depths=(2, 2, 2, 2)),
    "s": dict(depths=(3, 4, 6, 3)),
    "m": dict(depths=(3, 4, 18, 3)),
    "l": dict(depths=(3, 8, 27, 3)),
}
_MODELS: dict[str, tuple[type[nn.Module], dict[str, Any]]] = {
    **{f"flatten_deit_{k}": (DeiT, dict(v, attn_type="L", class_token=False)) for k, v in _DEIT.items()},
    **{f"deit_{k}": (DeiT, dict(v, attn_type="S", class_token=True)) for k, v in _DEIT.items()},
    **{f"flatten_pvt_{k}": (PVT, dict(v, attn_type="LLLL")) for k, v in _PVT.items()},
    **{f"pvt_{k}": (PVT, dict(v, attn_type="SSSS")) for k, v in _PVT.items()},
}


def list_models(pattern: str = "*") -> list[str]:
    """Names of all models that match a shell pattern, sorted: list_models("flatten_pvt_*")."""
    return sorted(fnmatch.filter(_MODELS, pattern))


def model_options(name: str) -> dict[str, Any]:
    """What `create_model` takes for this model beside its name, with the values that it has by default.

    Architecture (`depths`, `embed_dim`, ...), `attn_type`, and the options of every attention that could be chosen.
    """
    cls, settings = _lookup(name)
    fields = {f.name: f.default for f in dataclasses.fields(cls) if f.name not in ("attn_options", "parent", "name")}
    attention = {k: v for letter in MIXERS for k, v in mixer_options(letter).items()}
    return {**attention, **fields, **settings}


def create_model(name: str, **options: Any) -> nn.Module:
    """A Linen module by name: `logits = model.apply(variables, images, train=False)`.

    Images are (B, height, width, 3), normalised; logits (B, num_classes), float32. Training needs the random stream
    "dropout" when `drop_path` > 0. Parameters come from `model.init`, or from `flatten_jax.from_torch`.

    Args:
        name: one of `list_models()`.
        **options: overrides of `model_options(name)`, among them
            num_classes, drop_path, remat, and
            image_size: int or (height, width), default 224.
            dtype: of the computation, such as jnp.bfloat16 (default float32).
            attn_type: letters of the attentions, "L" focused linear and "S" softmax; per stage in PVT ("LLSS").
            focusing_factor, kernel_size, use_dwc, use_positional_encoding: of focused linear attention.

    Raises:
        ValueError: unknown name or option (the nearest is named), a size that patches do not divide.
    """
    cls, settings = _lookup(name)
    known = model_options(name)
    for option in options:
        if option not in known:
            raise ValueError(f"{name} has no option {option!r}{_nearest(option, known)}")
    fields = {f.name for f in dataclasses.fields(cls)}
    settings = {**settings, **{k: _static(v) for k, v in options.items() if k in fields}}
    attn_options = {k: v for k, v in options.items() if k not in fields}
    applicable = {option for letter in set(settings["attn_type"]) for option in mixer_options(letter)}
    for option in attn_options:
        if option not in applicable:
            raise ValueError(
                f"{option!r} has no effect on {name} with attn_type={settings['attn_type']!r}: leave it out"
            )
    if isinstance(settings.get("image_size"), int):
        settings["image_size"] = (settings["image_size"],) * 2
    if settings.get("dtype") is not None:
        settings["dtype"] = jnp.dtype(settings["dtype"])
    model = cls(**settings, attn_options=nn.FrozenDict(attn_options))
    abstract_variables(model)  # a wrong size or pattern is refused here, with its own message, not in a training step
    return model


def dummy_images(model: nn.Module, batch_size: int = 1) -> jax.Array:
    """Zeros of the shape a model takes, for `model.init`."""
    return jnp.zeros((batch_size, *model.image_size, 3), jnp.float32)


def abstract_variables(model: nn.Module) -> dict[str, Any]:
    """The model's variables as shapes and dtypes; nothing is computed."""
    return jax.eval_shape(model.init, jax.random.key(0), jax.eval_shape(lambda: dummy_images(model)))


def _lookup(name: str) -> tuple[type[nn.Module], dict[str, Any]]:
    if name not in _MODELS:
        raise ValueError(f"unknown model {name!r}{_nearest(name, _MODELS)}")
    return _MODELS[name]


def _nearest(word: str, known: Iterable[str]) -> str:
    known = sorted(known)
    close = difflib.get_close_matches(word, known, n=1)
    return f"; did you mean {close[0]!r}?" if close else f"; choose from {', '.join(known)}"


def _static(value: Any) -> Any:
    """Lists as tuples: attributes of a Linen module must be hashable."""
    return tuple(value) if isinstance(value, list) else value
