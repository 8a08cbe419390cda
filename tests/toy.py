"""A backbone with what training changes besides parameters ("batch_stats"), and with what it never changes."""

from typing import ClassVar

import flax.linen as nn
import jax
import numpy as np

from flatten_jax.models import abstract_variables
from flatten_jax.models.backbone import Backbone
from flatten_jax.models.registry import Entry
from flatten_jax.ops.batch_norm import BatchNorm

from .training.conftest import tiny

PATCH, WIDTH, MOMENTUM = 4, 8, 0.1


class Toy(Backbone):
    """Patches, a BatchNorm, a random matrix, a norm and a head."""

    no_weight_decay: ClassVar[tuple[str, ...]] = ()

    num_heads: int = 2

    def level_info(self):
        return [{"num_chs": WIDTH, "reduction": PATCH, "module": "bn"}]

    def attentions(self):
        return [()]

    def levels(self, images, train, count):
        x = nn.Conv(WIDTH, (PATCH, PATCH), PATCH, name="patch_embed")(images)
        x = BatchNorm(MOMENTUM, name="bn")(x, train)
        shape = (WIDTH, WIDTH)
        drawn = self.variable("constants", "matrix", lambda: jax.random.normal(self.make_rng("params"), shape))
        return [nn.relu(x) @ drawn.value]


TOY = Entry(Toy, {"attn_type": "softmax", "image_size": (16, 16)})


def toy_config():
    """`tiny()` with a model "toy", which a test has to put into the registry."""
    config = tiny()
    config.model = type(config)({"name": "toy", "image_size": (16, 16), "num_classes": 4, "dtype": "float32"})
    return config


def random_variables(model):
    """Of all collections, positive: variances are among them."""
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda x: rng.uniform(0.1, 1, x.shape).astype(np.float32), abstract_variables(model))


def patch_statistics(params, images):
    """(mean, unbiased variance) over (B, rows, columns) of the patches' embeddings, by NumPy; images are normalised."""
    batch, side = images.shape[0], images.shape[1] // PATCH
    patches = np.asarray(images, np.float64).reshape(batch, side, PATCH, side, PATCH, 3)
    embedded = np.einsum("brycxi,yxio->brco", patches, np.float64(params["patch_embed"]["kernel"]))
    embedded = embedded + params["patch_embed"]["bias"]
    return embedded.mean((0, 1, 2)), embedded.reshape(-1, WIDTH).var(axis=0, ddof=1)
