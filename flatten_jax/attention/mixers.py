"""The one table in which an attention is chosen."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from flatten_jax.attention.focused import FocusedLinearMixer
from flatten_jax.attention.softmax import SoftmaxMixer

# The letter of `attn_type` -> a module with attributes (num_heads, dtype, options of its own) and
# __call__(q (B, N, C), k (B, M, C), v (B, M, C), grid, key_grid) -> (B, N, C). A new attention is one line here.
MIXERS: dict[str, type[nn.Module]] = {"L": FocusedLinearMixer, "S": SoftmaxMixer}


def mixer_options(attn_type: str) -> dict[str, Any]:
    """Options (name -> default) of the mixer of one letter, such as {"focusing_factor": 3, ...} for "L"."""
    if attn_type not in MIXERS:
        raise ValueError(f"{attn_type=} is not a known attention; choose from {', '.join(MIXERS)}")
    common = {"num_heads", "dtype", "parent", "name"}
    return {f.name: f.default for f in dataclasses.fields(MIXERS[attn_type]) if f.name not in common}


def make_mixer(attn_type: str, num_heads: int, dtype: jnp.dtype | None, options: Mapping[str, Any]) -> nn.Module:
    """The mixer of one letter; it takes from `options` those that are its own, so that stages can differ in letter."""
    own = {name: options[name] for name in mixer_options(attn_type) if name in options}
    return MIXERS[attn_type](num_heads=num_heads, dtype=dtype, **own)
