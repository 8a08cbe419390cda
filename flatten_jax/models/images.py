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
    """Pixels as they are stored, made what a model takes.

    Args:
        images: (..., 3) from 0 to 255, uint8 say, or floating-point likewise.
        mean: of values from 0 to 1, for each channel; ImageNet's unless told.
        std: likewise.

    Returns:
        float32 of mean 0 and standard deviation 1 per channel.

    Raises:
        ValueError: the last axis is not 3; or fractions, none above 1, where values are known (not within `jax.jit`).
    """
    if jnp.shape(images)[-1:] != (3,):
        raise ValueError(
            f"images of {jnp.shape(images)} were given: normalize takes (..., height, width, 3), in RGB; of PyTorch's "
            "layout x.transpose(0, 2, 3, 1)"
        )
    images = jnp.asarray(images)
    if jnp.issubdtype(images.dtype, jnp.floating) and not isinstance(images, jax.core.Tracer):
        highest = float(images.max(initial=0))
        if highest <= 1 and float(jnp.abs(images - images.round()).max(initial=0)) > 0:
            raise ValueError(
                f"images from 0 to {highest:.3g} were given: normalize takes pixels from 0 to 255, so 255 * images"
            )
    return (images.astype(jnp.float32) / 255 - jnp.array(mean)) / jnp.array(std)


def check_images(images: jax.Array, image_size: tuple[int, int]) -> None:
    """ValueError, with what to do, unless images are (B, *image_size, 3) and floating-point."""
    shape = tuple(images.shape)
    if len(shape) == 4 and shape[1] == 3 and shape[3] != 3:
        raise ValueError(
            f"images of {shape} have their channels first: give (B, height, width, 3), x.transpose(0, 2, 3, 1)"
        )
    if len(shape) == 3 and shape[2] == 3:
        raise ValueError(f"images of {shape} are one image: give a batch of it, images[None]")
    if len(shape) != 4 or shape[3] != 3:
        raise ValueError(f"images of {shape} were given: a model takes (B, height, width, 3), in RGB")
    if not jnp.issubdtype(images.dtype, jnp.floating):
        raise ValueError(
            f"images of {images.dtype} were given: a model takes normalised ones, flatten_jax.normalize(images)"
        )
    if shape[1:3] != tuple(image_size):
        raise ValueError(
            f"images of {shape[1:3]} were given to a model of image_size={image_size}: resize them, or "
            "make the model for them (create_model(..., image_size=...)) and load its weights again"
        )


def dummy_images(model: nn.Module, batch_size: int = 1) -> jax.Array:
    """Zeros of the shape a model takes, for `model.init`; for a model of tokens whole numbers (B, N)."""
    if getattr(model, "tokens", False):
        return jnp.zeros((batch_size, model.image_size[0] * model.image_size[1]), jnp.int32)
    return jnp.zeros((batch_size, *model.image_size, 3), jnp.float32)
