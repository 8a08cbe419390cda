"""Maps made larger or smaller as PyTorch's F.interpolate does."""

import jax
import numpy as np

from flatten_jax.attention.contract import Grid


def bilinear(x: jax.Array, size: Grid) -> jax.Array:
    """(B, height, width, C) -> (B, *size, C): F.interpolate(mode="bilinear", align_corners=False), up and down."""
    if x.shape[1:3] == tuple(size):
        return x
    return jax.image.resize(x, (x.shape[0], *size, x.shape[3]), "linear", antialias=False)


def nearest(x: jax.Array, size: Grid) -> jax.Array:
    """(B, height, width, C) -> (B, *size, C): F.interpolate(mode="nearest"), from the lower edge of each new pixel.

    `jax.image.resize` takes its middle instead, which is another pixel where sides do not divide.
    """
    rows, columns = (np.arange(new) * old // new for old, new in zip(x.shape[1:3], size, strict=True))
    return x[:, rows][:, :, columns]
