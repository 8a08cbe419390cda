"""Models by name, and what can be asked of one."""

from flatten_jax.models.backbone import Backbone
from flatten_jax.models.create import (
    abstract_variables,
    create_model,
    init,
    list_models,
    model_options,
    parameters_left_out,
)
from flatten_jax.models.flops import multiply_adds
from flatten_jax.models.images import dummy_images, normalize
from flatten_jax.models.overview import num_params, summary
from flatten_jax.models.registry import PUBLISHED, Published

__all__ = [
    "PUBLISHED",
    "Backbone",
    "Published",
    "abstract_variables",
    "create_model",
    "dummy_images",
    "init",
    "list_models",
    "model_options",
    "multiply_adds",
    "normalize",
    "num_params",
    "parameters_left_out",
    "summary",
]
