"""Position encodings and bias tables made to fit another image size, as in the release's 384-pixel fine-tuning."""

import math
import re
from collections.abc import Sequence

import numpy as np

from flatten_jax.attention.contract import Grid
from flatten_jax.ops.bicubic import bicubic_matrix
from flatten_jax.weights.layout import Row

POSITIONS = r"(absolute_)?pos_embed(_?\d+)?|outer_pos"  # position embeddings of the families, one row for each token


def bicubic(x: np.ndarray, size: Grid) -> np.ndarray:
    """(height, width, C) -> (*size, C) as PyTorch's F.interpolate(mode="bicubic", align_corners=False)."""
    rows, columns = (bicubic_matrix(n, m) for n, m in zip(x.shape[:2], size, strict=True))
    return np.einsum("ih,jw,hwc->ijc", rows, columns, x.astype(np.float64), optimize=True).astype(x.dtype)


def resample_tokens(x: np.ndarray, source: Grid, target: Grid, prefix: int = 0) -> np.ndarray:
    """(1, prefix + N, C) on the grid `source` -> on `target`; the first `prefix` tokens (a class token) stay."""
    channels = x.shape[-1]
    tokens = bicubic(x[0, prefix:].reshape(*source, channels), target).reshape(1, -1, channels)
    return np.concatenate([x[:, :prefix], tokens], axis=1)


def resample_table(x: np.ndarray, source: Grid, target: Grid) -> np.ndarray:
    """Relative position biases ((2h - 1)(2w - 1), heads) of windows `source` = (h, w) -> of windows `target`."""
    source, target = (tuple(2 * n - 1 for n in window) for window in (source, target))
    return bicubic(x.reshape(*source, -1), target).reshape(-1, x.shape[-1])


def fit(row: Row, x: np.ndarray, rows: Sequence[Row], source_rows: Sequence[Row] | None = None) -> np.ndarray | None:
    """A parameter of another image size made to fit; None if it fits, or does not depend on that size.

    Args:
        row: of the parameter, in the model that takes it.
        x: of as many dimensions as `row.shape`, in our layout.
        rows: of that model.
        source_rows: of the model that had it. Not known from a PyTorch file: there a grid is taken to be square, and
            where its number of tokens has no root, of the shape of the new one.

    Raises:
        ValueError: the parameter belongs to one grid alone.
    """
    before = next((r.site for r in source_rows or () if r.path == row.path), None)
    if row.sized and row.sized.along != "offsets":
        queries = row.sized.of == "queries"
        source = (before.grid if queries else before.keys) if before else None
        fitted = _sized(row, x, source, row.site.grid if queries else row.site.keys)
    elif x.shape[1:] == row.shape[1:] and row.path[-1] == "relative_position_bias_table":
        source = before.keys if before else _source_window(len(x))
        fitted = resample_table(x, source, row.site.keys) if source and source != row.site.keys else None
    elif len(row.shape) == 4 and x.shape[:2] == row.shape[:2] and re.fullmatch(POSITIONS, row.path[-1]):
        positions = bicubic(x[0].transpose(1, 2, 0), row.shape[2:]).transpose(2, 0, 1)[None]  # SReT has them as a map
        fitted = positions if x.shape != row.shape else None
    elif x.shape[::2] == row.shape[::2] and re.fullmatch(POSITIONS, row.path[-1]):
        fitted = _positions(x, row.shape[1], rows, source_rows)
    else:
        return None
    return fitted if fitted is not None and fitted.shape == row.shape else None


def _positions(x: np.ndarray, tokens: int, rows: Sequence[Row], source_rows: Sequence[Row] | None) -> np.ndarray | None:
    """A position embedding (1, prefix + N, C), of the tokens of one of the model's grids."""
    target, prefix = _embedding_grid(tokens, rows)
    if target is None:
        return None
    if source_rows:
        source, prefix = _embedding_grid(x.shape[1], source_rows)
    else:
        source = _source_grid(x.shape[1] - prefix, target)
    return resample_tokens(x, source, target, prefix) if source and source != target else None


def _sized(row: Row, x: np.ndarray, source: Grid | None, target: Grid) -> np.ndarray | None:
    """As the originals do: tokens bicubic on their grid, rows and columns linear, half-pixel; a prefix stays."""
    sized, x = row.sized, np.moveaxis(x, row.sized.axis, 0)
    new = row.shape[sized.axis]
    if source == target or (source is None and len(x) == new and sized.along != "fixed"):
        return None
    if sized.along == "fixed":
        raise ValueError(
            f"{row.name} belongs to one grid{_as_text(source)}, and cannot be made to fit {_as_text(target)[4:]}: give "
            "create_model the image_size that the weights are of"
        )
    if sized.along != "tokens":
        prefix, fitted = 0, _linear(x, target[sized.along == "columns"])
    else:
        prefix = new - target[0] * target[1]
        source = source or _source_grid(len(x) - prefix, target)
        if prefix < 0 or source is None or source[0] * source[1] + prefix != len(x):
            return None
        fitted = bicubic(x[prefix:].reshape(*source, -1), target).reshape(-1, *x.shape[1:])
    if sized.summed:
        fitted = fitted * np.asarray((len(x) - prefix) / len(fitted), x.dtype)
    return np.moveaxis(np.concatenate([x[:prefix], fitted]), 0, sized.axis)


def _linear(x: np.ndarray, count: int) -> np.ndarray:
    """Linear interpolation along the first axis to `count`, half-pixel centres, as F.interpolate(mode="linear")."""
    place = np.clip((np.arange(count) + 0.5) * len(x) / count - 0.5, 0, len(x) - 1)
    left = np.minimum(place.astype(int), max(0, len(x) - 2))
    right = np.minimum(left + 1, len(x) - 1)
    share = (place - left).reshape(-1, *[1] * (x.ndim - 1))
    return ((1 - share) * x[left] + share * x[right]).astype(x.dtype)


def _as_text(grid: Grid | None) -> str:
    return "" if grid is None else f" of {grid[0]} x {grid[1]}"


def _source_grid(tokens: int, target: Grid) -> Grid | None:
    side = math.isqrt(tokens)
    if side * side == tokens:
        return side, side
    height = round(math.sqrt(tokens * target[0] / target[1]))
    width = round(tokens / max(1, height))
    return (height, width) if height * width == tokens and height * target[1] == width * target[0] else None


def _source_window(rows: int) -> Grid | None:
    side = math.isqrt(rows)
    return ((side + 1) // 2,) * 2 if side * side == rows and side % 2 else None


def _embedding_grid(tokens: int, rows: Sequence[Row]) -> tuple[Grid | None, int]:
    """The grid whose tokens an embedding is added to, and how many more it has, such as a class token."""
    for row in rows:
        if row.site and row.site.grid[0] * row.site.grid[1] + row.site.prefix == tokens:
            return row.site.grid, row.site.prefix
    return None, 0
