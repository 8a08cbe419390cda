"""Attention: one file a mechanism, the contract between them and their hosts, and the one table of names."""

from flatten_jax.attention.contract import Attention, Origin, Site, Sized
from flatten_jax.attention.core import linear_attention
from flatten_jax.attention.focused import focused_map
from flatten_jax.attention.table import (
    ATTENTIONS,
    AttentionInfo,
    attention_class,
    attention_info,
    attention_options,
    list_attentions,
    make_attention,
    of_stage,
    pattern,
    takes_bias,
)

__all__ = [
    "ATTENTIONS",
    "Attention",
    "AttentionInfo",
    "Origin",
    "Site",
    "Sized",
    "attention_class",
    "attention_info",
    "attention_options",
    "focused_map",
    "linear_attention",
    "list_attentions",
    "make_attention",
    "of_stage",
    "pattern",
    "takes_bias",
]
