"""The one table in which an attention is chosen."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from flatten_jax.attention.focused import FocusedLinearMixer
from flatten_jax.attention.softmax import SoftmaxMixer
from flatten_jax.ops.initializers import TORCH_CONV, ConvInit

# The letter of `attn_type` -> a module with attributes (num_heads, dtype, options of its own) and
# __call__(q (B, N, C), k (B, M, C), v (B, M, C), grid, key_grid) -> (B, N, C). A new attention is one line here.
# One that has scores may set `takes_bias` and take `bias` as well, one with convolutions may take `conv_init`.
MIXERS: dict[str, type[nn.Module]] = {"L": FocusedLinearMixer, "S": SoftmaxMixer}

_GIVEN_BY_HOST = {"num_heads", "dtype", "conv_init", "parent", "name"}


def mixer_class(attn_type: str) -> type[nn.Module]:
    """The mixer of one letter; ValueError if there is none."""
    if attn_type not in MIXERS:
        raise ValueError(f"{attn_type=} is not a known attention; choose from {', '.join(MIXERS)}")
    return MIXERS[attn_type]


def takes_bias(attn_type: str) -> bool:
    """Whether the mixer of a letter forms scores (B, h, N, M), to which a bias can be added.

    Its cost grows with N M, so the backbones give it their small windows, narrow stripes and reduced keys, and a
    relative position bias; a mixer without scores gets the windows and reductions of linear stages.
    """
    return getattr(mixer_class(attn_type), "takes_bias", False)


def mixer_options(attn_type: str) -> dict[str, Any]:
    """Options (name -> default) of the mixer of one letter, such as {"focusing_factor": 3, ...} for "L"."""
    return {f.name: f.default for f in dataclasses.fields(mixer_class(attn_type)) if f.name not in _GIVEN_BY_HOST}


def make_mixer(
    attn_type: str,
    num_heads: int,
    dtype: jnp.dtype | None,
    options: Mapping[str, Any],
    conv_init: ConvInit = TORCH_CONV,
) -> nn.Module:
    """The mixer of one letter; it takes from `options` those that are its own, so that stages can differ in letter."""
    cls = mixer_class(attn_type)
    own = {name: options[name] for name in mixer_options(attn_type) if name in options}
    if any(field.name == "conv_init" for field in dataclasses.fields(cls)):
        own["conv_init"] = conv_init
    return cls(num_heads=num_heads, dtype=dtype, **own)
