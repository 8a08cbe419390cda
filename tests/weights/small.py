"""What several tests here need: small models, and variables for them."""

import jax
import numpy as np

import flatten_jax
from flatten_jax.models import abstract_variables

from .make_fixtures import OPTIONS


def tiny(name="flatten_deit_t", **options):
    """The model that the fixtures are of, or with some options otherwise."""
    return flatten_jax.create_model(name, **{**OPTIONS, **options})


def random_variables(model):
    """Normal numbers for all floating-point variables; others, such as indices, 0."""
    rng = np.random.default_rng(0)

    def values(x):
        return (
            rng.standard_normal(x.shape, np.float32)
            if np.issubdtype(x.dtype, np.floating)
            else np.zeros(x.shape, x.dtype)
        )

    return jax.tree.map(values, abstract_variables(model))


def equal(a, b):
    """Whether two trees hold the very same numbers, as an assertion."""
    jax.tree.map(np.testing.assert_array_equal, a, b)
