"""Bicubic interpolation as PyTorch's: of position encodings on loading, and of pictures within a model (CrossViT)."""

import numpy as np


def bicubic_matrix(source: int, target: int) -> np.ndarray:
    """(target, source): what each new sample takes of each old one, as F.interpolate(mode="bicubic").

    Half-pixel centres (align_corners=False); samples beyond the edge are those at the edge. The kernel has a = -0.75
    and is never stretched: no antialiasing when it shrinks. `jax.image.resize` has a = -0.5.
    """
    position = (np.arange(target) + 0.5) * (source / target) - 0.5
    left = np.floor(position).astype(int)
    weights = np.zeros((target, source))
    for tap in (-1, 0, 1, 2):
        index = np.clip(left + tap, 0, source - 1)
        np.add.at(weights, (np.arange(target), index), _cubic(np.abs(position - (left + tap))))
    return weights


def _cubic(distance: np.ndarray, a: float = -0.75) -> np.ndarray:
    near = ((a + 2) * distance - (a + 3)) * distance**2 + 1
    far = ((distance - 5) * distance + 8) * a * distance - 4 * a
    return np.where(distance <= 1, near, far)
