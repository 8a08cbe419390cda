"""Hyena N-D (Zimerman and Wolf, ICLR 2024, arXiv 2309.13600): gated long convolutions with implicit 2-D filters."""

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from flatten_jax.attention.contract import Attention, Origin, Site, Sized, on_grid
from flatten_jax.attention.core import wide
from flatten_jax.ops.dense import Dense
from flatten_jax.ops.depthwise import DepthwiseConv

WIDTH = 64  # of the filter's perceptron
FLIPS = {"standard": [()], "seq": [(1, 2)], "4dir": [(), (1, 2), (2,), (1,)]}


def causal_convolution(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """y[a, b] = sum over a' <= a, b' <= b of kernel[a - a', b - b'] x[a', b'], by Fourier transforms in float32.

    Args:
        x: (B, height, width, C).
        kernel: (height, width, C).

    Returns:
        (B, height, width, C) in float32.
    """
    (height, width), x = x.shape[1:3], wide(x)
    size = (2 * height, 2 * width)
    product = jnp.fft.rfft2(x, size, axes=(1, 2)) * jnp.fft.rfft2(wide(kernel), size, axes=(0, 1))
    return jnp.fft.irfft2(product, size, axes=(1, 2))[:, :height, :width]


class Hyena(Attention):
    """x0 * K(x1 * v) with K a causal convolution over the whole grid, whose kernel a small network makes of positions.

    It makes all layers itself: `in_proj` and `short_filter` (3 x 3, depthwise) make x0, x1 and v; `filter_fn` makes the
    kernel, with sines of one learned frequency between its layers, times exp(-(t_a + t_b) |delta|), and adds
    `filter_fn/bias` times the input; `out_proj`. The kernel is divided by twice the side of the grid, as the release's
    scaling does. Beyond the release, which knows squares, the positions of a rectangle are those of its longer side.

    Attributes:
        direction: "standard"; "seq": K on the picture turned by half a turn; "4dir": four flips, mixed by `linear_mix`.
    """

    origin: ClassVar[Origin] = Origin(
        paper="Zimerman and Wolf, ICLR 2024",
        arxiv="2309.13600",
        code="ItamarZimerman/Hyena-ND",
        licence="none",
        formula="x0 * (k conv (x1 * v)), k(a, b) = MLP(a, b) exp(-(a + b) |delta|)",
    )
    streams: ClassVar[str] = ""
    takes_prefix: ClassVar[bool] = False
    takes_reduced: ClassVar[bool] = False
    sized: ClassVar[Mapping[str, Sized]] = {"z": Sized(1, "side", "queries")}

    direction: str = "standard"

    @nn.compact
    def __call__(self, x: jax.Array, site: Site) -> jax.Array:
        if self.direction not in FLIPS:
            raise ValueError(f"direction={self.direction!r} must be one of {', '.join(FLIPS)}")
        channels = x.shape[2]
        u = on_grid(Dense(3 * channels, dtype=self.dtype, name="in_proj")(x), site)
        u = DepthwiseConv(3 * channels, 3, self.dtype, self.conv_init, name="short_filter")(u)
        gate, inner, v = (wide(a) for a in jnp.split(u, 3, axis=-1))
        kernel, own = _Filter(channels, name="filter_fn")(site.grid)
        x1 = inner * v
        found = []
        for axes in FLIPS[self.direction]:
            flipped = jnp.flip(x1, axes)
            found.append(gate * jnp.flip(causal_convolution(flipped, kernel) + own * flipped, axes))
        y = found[0]
        if len(found) > 1:
            y = Dense(1, name="linear_mix")(jnp.stack(found, axis=-1))[..., 0]
        return Dense(channels, dtype=self.dtype, name="out_proj")(y.reshape(x.shape).astype(u.dtype))


class _Filter(nn.Module):
    """(height, width) -> the kernel (height, width, C) of the causal convolution, and the weight C of its input."""

    features: int

    @nn.compact
    def __call__(self, grid: tuple[int, int]) -> tuple[jax.Array, jax.Array]:
        side = max(grid)
        z = _Parameter((1, side, 3), _positions, "z", name="pos_emb")()[0]
        rows, columns = z[: grid[0], None], z[None, : grid[1]]
        pairs = jnp.concatenate([jnp.broadcast_to(a, (*grid, 3)) for a in (rows, columns)], axis=-1)
        frequency = _Parameter((1, WIDTH), nn.initializers.ones, "freq", name="implicit_filter_1")()
        hidden = pairs
        for i in (0, 2, 4):
            hidden = jnp.sin(frequency * Dense(WIDTH, name=f"implicit_filter_{i}")(hidden))
        kernel = Dense(self.features, use_bias=False, name="implicit_filter_6")(hidden)
        t = np.arange(side) / max(1, side - 1)
        delta = np.abs(np.linspace(math.log(0.01) / 1.5, math.log(0.01) / 0.3, self.features))
        decay = np.exp(-(t[: grid[0], None, None] + t[None, : grid[1], None]) * delta).astype(np.float32)
        own = self.param("bias", nn.initializers.normal(1.0), (self.features,))
        return kernel * decay / (2 * side), own


def _positions(key: jax.Array, shape: tuple[int, int, int], dtype: Any = jnp.float32) -> jax.Array:
    steps = np.arange(shape[1])
    w = 1e-4 * 2 * np.pi * steps / shape[1]
    return jnp.asarray(np.stack([steps / max(1, shape[1] - 1), np.cos(w), -np.sin(w)], axis=-1)[None], dtype)


class _Parameter(nn.Module):
    """One parameter under a module's name."""

    shape: tuple[int, ...]
    initial: Any
    leaf: str

    @nn.compact
    def __call__(self) -> jax.Array:
        return self.param(self.leaf, self.initial, self.shape)
