"""Small models with values that all matter, and what is captured of them."""

import jax
import numpy as np

from flatten_jax.analysis import capture
from flatten_jax.models import abstract_variables, create_model


def captured(name, examples=2, **options):
    """The layers of a model with random variables and pictures. Initial ones, zeros and ones, would hide much."""
    model = create_model(name, **options)
    rng = np.random.default_rng(0)
    variables = {
        collection: jax.tree.map(lambda x, c=collection: _draw(rng, x, c), tree)
        for collection, tree in abstract_variables(model).items()
    }
    images = rng.standard_normal((examples, *model.image_size, 3)).astype(np.float32)
    return capture(model, variables, images)


def _draw(rng, x, collection):
    draw = (0.2 * rng.standard_normal(x.shape)).astype(x.dtype)
    return abs(draw) + 0.5 if collection == "batch_stats" else draw  # variances
