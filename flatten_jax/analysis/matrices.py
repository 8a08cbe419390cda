"""What can be measured on attention matrices: rank, entropy, focus, distance. NumPy in float64."""

import numpy as np


def singular_values(matrix: np.ndarray) -> np.ndarray:
    """(..., N, M) -> (..., min(N, M)), descending. Half a minute for N = M = 3,136."""
    return np.linalg.svd(np.asarray(matrix, np.float64), compute_uv=False)


def numerical_rank(matrix: np.ndarray, tolerance: float | None = None) -> np.ndarray:
    """How many singular values are above `tolerance` times the largest.

    Args:
        matrix: (..., N, M).
        tolerance: by default max(N, M) times float32's epsilon, 2.3e-5 for 196 tokens, whatever the dtype: the rule of
            NumPy and PyTorch for the precision in which the models compute.

    Returns:
        (...) integers.
    """
    if tolerance is None:
        tolerance = max(matrix.shape[-2:]) * np.finfo(np.float32).eps
    values = singular_values(matrix)
    return (values > tolerance * values[..., :1]).sum(axis=-1)


def entropy(matrix: np.ndarray) -> np.ndarray:
    """Of each row, in nats: log M where a query attends to all keys alike, 0 where to one alone.

    Args:
        matrix: (..., N, M). Rows are taken in absolute value and divided by their sum, which changes nothing for an
            attention matrix. With the depthwise branch, whose entries have either sign, it makes the rows shares of
            influence.

    Returns:
        (..., N); NaN for a row without any weight, here and below, which `mean` leaves out.
    """
    shares = _shares(matrix)
    return -(shares * np.log(np.where(shares > 0, shares, 1))).sum(axis=-1)


def focus(matrix: np.ndarray) -> np.ndarray:
    """The largest share of each row as a multiple of the mean: 1 where a query attends to all alike, M where to one.

    Args:
        matrix: (..., N, M), rows taken as in `entropy`.

    Returns:
        (..., N).
    """
    return matrix.shape[-1] * _shares(matrix).max(axis=-1)


def distance(matrix: np.ndarray, queries: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """The mean distance between a query and what it attends to, weighted by the attention.

    Args:
        matrix: (..., N, M), rows taken as in `entropy`.
        queries: (..., N, 2) places of the queries (row, column); NaN for a class token, which has none.
        keys: (..., M, 2) likewise. A key without a place is left out of the mean.

    Returns:
        (..., N) in the unit of the places; NaN for a query without one.
    """
    apart = np.linalg.norm(queries[..., :, None, :] - keys[..., None, :, :], axis=-1)
    placed = ~np.isnan(keys).any(axis=-1)[..., None, :]
    return (_shares(np.where(placed, matrix, 0)) * np.where(placed, apart, 0)).sum(axis=-1)


def mean(values: np.ndarray, axis: int | tuple[int, ...] | None = None) -> np.ndarray:
    """Over what is a number: rows without any weight, as ReLU can leave them, have no entropy. NaN where all are so."""
    there = ~np.isnan(values)
    count = there.sum(axis=axis)
    return np.where(count, np.where(there, values, 0).sum(axis=axis) / np.maximum(count, 1), np.nan)


def _shares(matrix: np.ndarray) -> np.ndarray:
    weights = np.abs(np.asarray(matrix, np.float64))
    sums = weights.sum(axis=-1, keepdims=True)
    return np.where(sums, weights / np.where(sums, sums, 1), np.nan)
