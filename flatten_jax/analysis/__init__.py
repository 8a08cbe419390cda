"""Looking at models: attention matrices and what they measure. Pictures are in `figures` and `curves` (matplotlib)."""

from flatten_jax.analysis.capture import capture
from flatten_jax.analysis.layer import Layer
from flatten_jax.analysis.matrices import distance, entropy, numerical_rank, singular_values

__all__ = [
    "Layer",
    "capture",
    "distance",
    "entropy",
    "numerical_rank",
    "singular_values",
]
