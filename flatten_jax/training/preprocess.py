"""What happens to a uint8 batch on the device before the model sees it, once it is normalised: erase, mix, smooth.

The numbers are timm's, whose recipe the release uses; the draws are ours (jax.random), one key per step.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class Mixing(NamedTuple):
    """Parameters of `mix`: Beta(a, a) for mixup and cutmix (0 = off), and the two probabilities, all per batch."""

    mixup: float = 0.8
    cutmix: float = 1.0
    prob: float = 1.0
    switch_prob: float = 0.5


NO_MIXING = Mixing(mixup=0.0, cutmix=0.0)


def soft_targets(labels: jax.Array, num_classes: int, smoothing: float) -> jax.Array:
    """(B,) integer labels -> (B, num_classes): 1 - s on the label, and s shared by all classes."""
    return jax.nn.one_hot(labels, num_classes) * (1 - smoothing) + smoothing / num_classes


def random_erase(key: jax.Array, images: jax.Array, prob: float) -> jax.Array:
    """With probability `prob` per image, one box of it becomes normal noise, pixel by pixel.

    timm's RandomErasing in mode "pixel" (random_erasing.py): area uniform in 2 % to 1/3 of the image, aspect
    log-uniform in 0.3 to 1 / 0.3, the first of ten draws that fits; applied to normalised images.

    Args:
        images: (B, height, width, channels), normalised.
    """
    batch, height, width, _ = images.shape
    area_key, aspect_key, place_key, use_key, noise_key = jax.random.split(key, 5)
    tries = (batch, 10)
    area = jax.random.uniform(area_key, tries, minval=0.02, maxval=1 / 3) * height * width
    aspect = jnp.exp(jax.random.uniform(aspect_key, tries, minval=jnp.log(0.3), maxval=-jnp.log(0.3)))
    box_height = jnp.round(jnp.sqrt(area * aspect))
    box_width = jnp.round(jnp.sqrt(area / aspect))
    fits = (box_height < height) & (box_width < width)
    first = jnp.argmax(fits, axis=1)[:, None]
    box_height, box_width = (jnp.take_along_axis(x, first, 1)[:, 0] for x in (box_height, box_width))
    use = jax.random.bernoulli(use_key, prob, (batch,)) & fits.any(axis=1)

    place = jax.random.uniform(place_key, (2, batch))
    top = jnp.floor(place[0] * (height - box_height + 1))
    left = jnp.floor(place[1] * (width - box_width + 1))
    rows, columns = jnp.arange(height), jnp.arange(width)
    in_rows = (rows >= top[:, None]) & (rows < (top + box_height)[:, None])
    in_columns = (columns >= left[:, None]) & (columns < (left + box_width)[:, None])
    inside = use[:, None, None] & in_rows[:, :, None] & in_columns[:, None, :]
    return jnp.where(inside[..., None], jax.random.normal(noise_key, images.shape), images)


def mix(key: jax.Array, images: jax.Array, targets: jax.Array, mixing: Mixing) -> tuple[jax.Array, jax.Array]:
    """Mixup or cutmix of the batch with itself in reverse order, one draw for the batch (timm's mode "batch").

    Both are a weight map over the picture: constant for mixup, 0 in a box and 1 outside for cutmix. Targets are mixed
    by its mean, which is timm's correction for boxes that the border clips.

    Args:
        images: (B, height, width, channels) float.
        targets: (B, num_classes).
    """
    _, height, width, _ = images.shape
    use_key, switch_key, mixup_key, cutmix_key, y_key, x_key = jax.random.split(key, 6)

    lam = jax.random.beta(mixup_key, mixing.mixup, mixing.mixup) if mixing.mixup else 1.0
    weights = jnp.full((height, width), lam)
    if mixing.cutmix:
        side = jnp.sqrt(1 - jax.random.beta(cutmix_key, mixing.cutmix, mixing.cutmix))
        outside = ~(_span(y_key, height, side)[:, None] & _span(x_key, width, side)[None, :])
        switch = mixing.switch_prob if mixing.mixup else 1.0
        weights = jnp.where(jax.random.bernoulli(switch_key, switch), outside.astype(weights.dtype), weights)
    weights = jnp.where(jax.random.bernoulli(use_key, mixing.prob), weights, 1.0)

    share = weights.mean()
    weights = weights[:, :, None]
    return weights * images + (1 - weights) * images[::-1], share * targets + (1 - share) * targets[::-1]


def _span(key: jax.Array, length: int, side: jax.Array) -> jax.Array:
    """Mask (length,) of a box of relative side `side` around a uniform centre, clipped at the borders."""
    half = jnp.floor(length * side).astype(jnp.int32) // 2
    centre = jax.random.randint(key, (), 0, length)
    position = jnp.arange(length)
    return (position >= centre - half) & (position < centre + half)
