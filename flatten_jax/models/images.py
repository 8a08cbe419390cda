"""What images are to the models: their shape, and the mean and standard deviation that they are normalised by."""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def normalize(
    images: jax.Array, mean: Sequence[float] = IMAGENET_MEAN, std: Sequence[float] = IMAGENET_STD
) -> jax.Array:
    """uint8 (..., 3) to float32 of mean 0 and standard deviation 1 per channel, which are ImageNet's unless told."""
    return (images.astype(jnp.float32) / 255 - jnp.array(mean)) / jnp.array(std)


def dummy_images(model: nn.Module, batch_size: int = 1) -> jax.Array:
    """Zeros of the shape a model takes, for `model.init`."""
    return jnp.zeros((batch_size, *model.image_size, 3), jnp.float32)
