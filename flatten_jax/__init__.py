"""Linear attentions for vision, interchangeable in every backbone, in JAX."""

from flatten_jax._version import __version__
from flatten_jax.attention import Attention, Site, attention_info, focused_map, linear_attention, list_attentions
from flatten_jax.hosts import FocusedLinearAttention, LinearAttention, QKVAttention, ReducedAttention
from flatten_jax.models import create_model, init, list_models, model_options, normalize, num_params, summary
from flatten_jax.ops.depthwise import depthwise_conv
from flatten_jax.ops.derivative import forward_mode
from flatten_jax.segmentation.create import create_segmenter
from flatten_jax.trained.hub import from_pretrained, push_to_hub, save_pretrained
from flatten_jax.weights.convert import from_torch, to_torch
from flatten_jax.weights.files import save_weights
from flatten_jax.weights.load import load_weights

__all__ = [
    "Attention",
    "FocusedLinearAttention",
    "LinearAttention",
    "QKVAttention",
    "ReducedAttention",
    "Site",
    "__version__",
    "attention_info",
    "create_model",
    "create_segmenter",
    "depthwise_conv",
    "focused_map",
    "forward_mode",
    "from_pretrained",
    "from_torch",
    "init",
    "linear_attention",
    "list_attentions",
    "list_models",
    "load_weights",
    "model_options",
    "normalize",
    "num_params",
    "push_to_hub",
    "save_pretrained",
    "save_weights",
    "summary",
    "to_torch",
]
