"""Focused linear attention vision transformers in JAX."""

from flatten_jax._version import __version__
from flatten_jax.attention import (
    FocusedLinearAttention,
    FocusedLinearMixer,
    QKVAttention,
    ReducedAttention,
    focused_map,
    linear_attention,
)
from flatten_jax.trained.hub import from_pretrained, push_to_hub, save_pretrained
from flatten_jax.models import create_model, list_models, model_options
from flatten_jax.weights.convert import from_torch, to_torch
from flatten_jax.weights.files import save_weights
from flatten_jax.weights.load import load_weights

__all__ = [
    "FocusedLinearAttention",
    "FocusedLinearMixer",
    "QKVAttention",
    "ReducedAttention",
    "__version__",
    "create_model",
    "focused_map",
    "from_pretrained",
    "from_torch",
    "linear_attention",
    "list_models",
    "load_weights",
    "model_options",
    "push_to_hub",
    "save_pretrained",
    "save_weights",
    "to_torch",
]
