"""Looking at models: attention matrices and what they measure. Pictures are in `figures` and `curves` (matplotlib)."""

from flatten_jax.analysis.capture import KINDS, Layer, capture
from flatten_jax.analysis.matrices import (
    depthwise_matrix,
    distance,
    entropy,
    linear_matrix,
    numerical_rank,
    singular_values,
    softmax_matrix,
    stretch_matrix,
)

__all__ = [
    "KINDS",
    "Layer",
    "capture",
    "depthwise_matrix",
    "distance",
    "entropy",
    "linear_matrix",
    "numerical_rank",
    "singular_values",
    "softmax_matrix",
    "stretch_matrix",
]
