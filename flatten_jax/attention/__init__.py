"""Attention for vision transformers: functions, mixers made of them, and the hosts that project around them."""

from flatten_jax.ops.depthwise import DepthwiseConv, depthwise_conv
from flatten_jax.hosts.drop_in import FocusedLinearAttention
from flatten_jax.attention.focused import FocusedLinearMixer, focused_map, linear_attention
from flatten_jax.attention.hosts import QKVAttention, ReducedAttention, StripeAttention, WindowAttention
from flatten_jax.attention.mixers import MIXERS, make_mixer, mixer_options, takes_bias
from flatten_jax.attention.softmax import SoftmaxMixer

__all__ = [
    "MIXERS",
    "DepthwiseConv",
    "FocusedLinearAttention",
    "FocusedLinearMixer",
    "QKVAttention",
    "ReducedAttention",
    "SoftmaxMixer",
    "StripeAttention",
    "WindowAttention",
    "depthwise_conv",
    "focused_map",
    "linear_attention",
    "make_mixer",
    "mixer_options",
    "takes_bias",
]
