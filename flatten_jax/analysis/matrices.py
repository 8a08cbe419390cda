"""Attention written out as matrices, and what can be measured on them: rank, entropy, distance.

Everything is NumPy in float64 and O(N M): for looking at models, not for running them.
"""

import jax
import jax.numpy as jnp
import numpy as np

from flatten_jax.attention.focused import EPSILON, stretch_tokens

Grid = tuple[int, int]


def softmax_matrix(q: np.ndarray, k: np.ndarray, bias: np.ndarray | None = None) -> np.ndarray:
    """softmax(q k^T / sqrt(d) + bias).

    Args:
        q: (W, N, h, d).
        k: (W, M, h, d).
        bias: (P, 1 or h, N, M) with P a divisor of W: example w takes bias[w % P], as in `SoftmaxMixer`.

    Returns:
        (W, h, N, M); rows sum to 1.
    """
    scores = np.einsum("wnhd,wmhd->whnm", *_float64(q, k), optimize=True) / np.sqrt(q.shape[-1])
    if bias is not None:
        scores += np.tile(_float64(bias)[0], (len(scores) // len(bias), 1, 1, 1))
    scores = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return scores / scores.sum(axis=-1, keepdims=True)


def linear_matrix(q: np.ndarray, k: np.ndarray) -> np.ndarray:
    """The matrix that `linear_attention` multiplies the values with and never forms: row-normalised q k^T.

    Args:
        q: (W, N, h, d) non-negative features, as `focused_map` gives them.
        k: (W, M, h, d) likewise.

    Returns:
        (W, h, N, M) of rank d at most. Rows sum to 1, or to less where the 1e-6 in the normaliser counts: a query that
        has next to nothing in common with any key, head by head.
    """
    scores = np.einsum("wnhd,wmhd->whnm", *_float64(q, k), optimize=True) / k.shape[1]
    return scores / (scores.sum(axis=-1, keepdims=True) + EPSILON)


def depthwise_matrix(kernel: np.ndarray, grid: Grid, tokens: np.ndarray | None = None) -> np.ndarray:
    """M_DWC: the matrix of `depthwise_conv`, one for each channel, since each has a filter of its own.

    Args:
        kernel: (k, k, C) with k odd.
        grid: (height, width) of the N tokens, row-major.
        tokens: (R,) the rows wanted; all by default.

    Returns:
        (C, R, N).
    """
    (height, width), size, margin = grid, kernel.shape[0], kernel.shape[0] // 2
    tokens = np.arange(height * width) if tokens is None else np.asarray(tokens)
    matrix = np.zeros((kernel.shape[2], len(tokens), height * width))
    for i, j in np.ndindex(size, size):
        row, column = tokens // width + i - margin, tokens % width + j - margin
        inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
        matrix[:, np.flatnonzero(inside), (row * width + column)[inside]] = kernel[i, j, :, None]
    return matrix


def stretch_matrix(tokens: int, keys: int) -> np.ndarray:
    """(tokens, keys): the interpolation by which PVT stretches reduced values before the depthwise branch."""
    return np.asarray(stretch_tokens(jnp.eye(keys)[None], tokens)[0], np.float64)


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
        (..., N).
    """
    shares = _shares(matrix)
    return -(shares * np.log(np.where(shares > 0, shares, 1))).sum(axis=-1)


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


def _shares(matrix: np.ndarray) -> np.ndarray:
    weights = np.abs(np.asarray(matrix, np.float64))
    return weights / weights.sum(axis=-1, keepdims=True)


def _float64(*arrays: np.ndarray | jax.Array) -> list[np.ndarray]:
    return [np.asarray(x, np.float64) for x in arrays]
