"""Where on the picture the tokens of an attention's windows are."""

from collections.abc import Sequence
from typing import NamedTuple

import flax.linen as nn
import numpy as np

from flatten_jax.attention import Site
from flatten_jax.hosts import WindowAttention
from flatten_jax.hosts.grids import Windows


class Places(NamedTuple):
    """Places of tokens in the P windows of a picture.

    Attributes:
        grid: (height, width) of the picture's tokens.
        queries: (P, N, 2) row and column of each query on `grid`, beyond it for padding; NaN for a class token.
        keys: (P, M, 2) likewise, the centre of a key's patch.
        key_size: tokens that a key spans along each axis (PVT's spatial reduction).
    """

    grid: tuple[int, int]
    queries: np.ndarray
    keys: np.ndarray
    key_size: int = 1

    def locate(self, query: tuple[int, int]) -> tuple[int, int]:
        """(window, token) of the query at (row, column) of the grid."""
        found = np.argwhere((self.queries == np.array(query)).all(axis=-1))
        if not len(found) or not all(0 <= x < side for x, side in zip(query, self.grid, strict=True)):
            raise ValueError(f"{query=} is not on the grid of {self.grid[0]} x {self.grid[1]} tokens")
        window, token = found[0]
        return int(window), int(token)

    def on_picture(self, weights: np.ndarray, example: int) -> np.ndarray:
        """Weights of keys (..., M) -> (..., height, width), on all tokens that a key spans; 0 outside the window.

        What lies on padding or a class token is not on the picture.
        """
        canvas = np.zeros((*weights.shape[:-1], *self.grid))
        corners = self.keys[example % len(self.keys)] - (self.key_size - 1) / 2
        for offset in np.ndindex(self.key_size, self.key_size):
            rows, columns = (corners + offset).T
            inside = (rows >= 0) & (rows < self.grid[0]) & (columns >= 0) & (columns < self.grid[1])  # False for NaN
            canvas[..., rows[inside].astype(int), columns[inside].astype(int)] = weights[..., inside]
        return canvas


def places(around: Sequence[tuple[nn.Module, Site]], site: Site) -> Places:
    """Where the tokens of an attention at `site` are.

    Args:
        around: the modules around it with their sites, from the block inwards.
    """
    grid = around[0][1].grid
    windows = Windows(grid, site.grid)
    for module, _ in around:
        if isinstance(module, WindowAttention):
            windows = Windows.of(grid, module.window_size, module.shifted)
    windows = windows._replace(grid=windows.padded)  # so that padding has places as well
    queries = np.asarray(windows.split(_indices(windows.grid)[None]), float)
    queries = np.concatenate([np.full((len(queries), site.prefix, 2), np.nan), queries], axis=1)
    if site.keys == site.grid:
        return Places(grid, queries, queries)
    span = max(getattr(module, "sr_ratio", 1) for module, _ in around)
    return Places(grid, queries, _indices(site.keys)[None] * span + (span - 1) / 2, span)


def _indices(grid: tuple[int, int]) -> np.ndarray:
    """(N, 2) row and column of each token."""
    return np.stack(np.indices(grid), axis=-1).reshape(-1, 2)
