"""Intersection over union and accuracies of a confusion matrix, as mmsegmentation counts them."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from flatten_jax.segmentation.masks import IGNORED

_LIMB = 16  # bits: sums of a data set are exact in two numbers of 32 bits


class Scores(NamedTuple):
    """Fractions, not percent.

    Attributes:
        iou: of each class, intersection over union; NaN for a class that neither labels nor predictions have.
        miou: mean of those that are no NaN.
        aacc: share of all pixels that are right.
        macc: mean over classes of the share of a class's pixels that are right; without those that no label has.
    """

    iou: np.ndarray
    miou: float
    aacc: float
    macc: float


def scores(confusion: np.ndarray) -> Scores:
    """Of counts (label, prediction) of the pixels of a whole set, those of no class left out."""
    confusion = np.asarray(confusion, np.float64)
    right, labelled, predicted = np.diag(confusion), confusion.sum(1), confusion.sum(0)
    with np.errstate(invalid="ignore"):
        iou = right / (labelled + predicted - right)
        accuracy = right / labelled
        all_right = right.sum() / confusion.sum()
    return Scores(iou, _mean(iou), float(all_right), _mean(accuracy))


def _mean(x: np.ndarray) -> float:
    return float(x[~np.isnan(x)].mean()) if not np.isnan(x).all() else float("nan")


def confusion_of(labels: jax.Array, predicted: jax.Array, num_classes: int) -> jax.Array:
    """int32 (num_classes, num_classes): pixels of each (label, prediction), without those whose label is IGNORED."""
    labels = labels.astype(jnp.int32)
    place = jnp.where(labels == IGNORED, num_classes**2, labels * num_classes + predicted)
    counts = jnp.zeros(num_classes**2, jnp.int32).at[place.ravel()].add(1, mode="drop")
    return counts.reshape(num_classes, num_classes)


def in_limbs(counts: jax.Array) -> jax.Array:
    """int32 (...) -> uint32 (2, ...), whose sums over up to 65,536 batches are exact: high part and low part."""
    counts = counts.astype(jnp.uint32)
    return jnp.stack([counts >> _LIMB, counts & (2**_LIMB - 1)])


def of_limbs(sums: np.ndarray) -> np.ndarray:
    """int64 (...) of sums of `in_limbs`."""
    high, low = np.asarray(sums).astype(np.int64)
    return (high << _LIMB) + low
