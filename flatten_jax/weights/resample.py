"""Position encodings and bias tables made to fit another image size, as in the release's 384-pixel fine-tuning."""

import math
import re
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import numpy as np

from flatten_jax.weights.convert import visit_calls

Grid = tuple[int, int]
TokenGrids = dict[tuple[str, ...], dict[str, Grid]]


def bicubic(x: np.ndarray, size: Grid) -> np.ndarray:
    """(height, width, C) -> (*size, C) as PyTorch's F.interpolate(mode="bicubic", align_corners=False).

    The kernel has a = -0.75 and is never stretched: no antialiasing when it shrinks. `jax.image.resize` has a = -0.5.
    """
    rows, columns = (_weights(n, m) for n, m in zip(x.shape[:2], size, strict=True))
    return np.einsum("ih,jw,hwc->ijc", rows, columns, x.astype(np.float64), optimize=True).astype(x.dtype)


def _weights(source: int, target: int) -> np.ndarray:
    """(target, source): what each new sample takes of each old one; samples beyond the edge are those at the edge."""
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


def resample_tokens(x: np.ndarray, source: Grid, target: Grid, prefix: int = 0) -> np.ndarray:
    """(1, prefix + N, C) on the grid `source` -> on `target`; the first `prefix` tokens (a class token) stay."""
    channels = x.shape[-1]
    tokens = bicubic(x[0, prefix:].reshape(*source, channels), target).reshape(1, -1, channels)
    return np.concatenate([x[:, :prefix], tokens], axis=1)


def resample_table(x: np.ndarray, source: Grid, target: Grid) -> np.ndarray:
    """Relative position biases ((2h - 1)(2w - 1), heads) of windows `source` = (h, w) -> of windows `target`."""
    source, target = (tuple(2 * n - 1 for n in window) for window in (source, target))
    return bicubic(x.reshape(*source, -1), target).reshape(-1, x.shape[-1])


def fit(
    path: tuple[str, ...],
    x: np.ndarray,
    shape: tuple[int, ...],
    grids: TokenGrids,
    source_grids: TokenGrids | None = None,
) -> np.ndarray | None:
    """The parameter at `path`, of another image size, made to fit `shape`; None if it does not depend on that size.

    Args:
        grids: `token_grids` of the model that takes the parameter.
        source_grids: of the model that had it. Not known from a PyTorch file: there a grid is taken to be square, and
            where its number of tokens has no root, of the shape of the new one.
    """
    leaf, attention = path[-1], path[:-1]
    if x.ndim != len(shape) or x.shape[-1] != shape[-1]:
        return None
    if leaf == "positional_encoding":
        target = grids[attention]["key_grid"]
        source = source_grids[attention]["key_grid"] if source_grids else _source_grid(x.shape[1], target)
        return resample_tokens(x, source, target) if source else None
    if re.fullmatch(r"(absolute_)?pos_embed\d*", leaf):
        target, prefix = _embedding_grid(shape[1], grids)
        if source_grids:
            source, prefix = _embedding_grid(x.shape[1], source_grids)
        else:
            source = _source_grid(x.shape[1] - prefix, target)
        return resample_tokens(x, source, target, prefix) if source else None
    if leaf == "relative_position_bias_table":
        target = grids[attention]["key_grid"]
        source = source_grids[attention]["key_grid"] if source_grids else _source_window(x.shape[0])
        return resample_table(x, source, target) if source else None
    return None


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


def _embedding_grid(tokens: int, grids: TokenGrids) -> tuple[Grid, int]:
    """The grid whose tokens an embedding is added to, and how many more it has: a class token, or none."""
    for prefix in (0, 1):
        for height, width in (grid["grid"] for grid in grids.values()):
            if height * width + prefix == tokens:
                return (height, width), prefix
    raise ValueError(f"no stage of the model has {tokens} tokens")


def token_grids(model: nn.Module) -> TokenGrids:
    """{path of an attention: {"grid": of its queries, "key_grid": of its keys}}, as the model passes them on."""
    grids: TokenGrids = {}

    def visit(module: nn.Module, arguments: Mapping[str, Any]) -> None:
        if "key_grid" in arguments:
            grids[module.scope.path] = {name: arguments[name] for name in ("grid", "key_grid")}

    visit_calls(model, visit)
    return grids
