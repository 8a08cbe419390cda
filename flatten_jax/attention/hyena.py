"""Hyena N-D (Zimerman and Wolf, 2023, arXiv 2309.13600): convolutions as long as the grid, by an implicit kernel."""

from collections.abc import Mapping
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from flatten_jax.attention.contract import Attention, Grid, Origin, Site, Sized, on_grid
from flatten_jax.attention.core import wide
from flatten_jax.ops.dense import Dense
from flatten_jax.ops.depthwise import DepthwiseConv

# Axes by which the picture is turned before the causal convolution, and back after it.
DIRECTIONS = {"standard": ((),), "seq": ((1, 2),), "4dir": ((), (1, 2), (2,), (1,))}

# The sine layers of a perceptron share one frequency, `freq`, which is in the original's state dict once for each.
COPIES = {
    "implicit_filter.1.freq": ("implicit_filter.3.freq", "implicit_filter.5.freq"),
    "Yimplicit_filter.1.freq": (
        "Yimplicit_filter.3.freq",
        "Yimplicit_filter.5.freq",
        "Ximplicit_filter.1.freq",
        "Ximplicit_filter.3.freq",
        "Ximplicit_filter.5.freq",
    ),
}


def causal_convolution(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """y[a, b] = sum over a' <= a, b' <= b of kernel[a - a', b - b'] x[a', b'], by FFT in float32.

    Args:
        x: (B, height, width, C).
        kernel: (height, width, C).

    Returns:
        (B, height, width, C) in float32 at least.
    """
    height, width = x.shape[1:3]
    size = (2 * height, 2 * width)
    spectrum = jnp.fft.rfft2(wide(x), size, axes=(1, 2)) * jnp.fft.rfft2(wide(kernel), size, axes=(0, 1))
    return jnp.fft.irfft2(spectrum, size, axes=(1, 2))[:, :height, :width]


class Hyena(Attention):
    """y = x0 * K(x1 * v), where x0, x1, v are a 3 x 3 depthwise convolution (`short_filter`) of `in_proj` x.

    K(w) = `causal_convolution`(w, k) / (2 sqrt(height width)) + D w with k of `filter_fn`; the divisor is that of the
    release's FFT. Then `out_proj`. The filter has rows for the sides of one grid; beyond the code, it need not be
    square. Heads have no meaning.

    Attributes:
        direction: "standard" sees what is above and to the left; "seq" what is below and to the right; "4dir" all four
            quarters, mixed by `linear_mix`.
        product_filter: k is a product of a function of the row and one of the column, instead of a function of both.
    """

    origin: ClassVar[Origin] = Origin(
        paper="Zimerman and Wolf, 2023",
        arxiv="2309.13600",
        code="Itamarzimm/HyenaND@869480c",
        licence="Apache-2.0",
        formula="x0 * (k ** (x1 * v) / 2L + D x1 v), k an implicit filter, ** causal in rows and columns",
    )
    streams: ClassVar[str] = ""
    takes_prefix: ClassVar[bool] = False
    takes_reduced: ClassVar[bool] = False
    sized: ClassVar[Mapping[str, Sized]] = {"z": Sized(axis=1, along="fixed", of="queries")}
    computed: ClassVar[tuple[str, ...]] = (
        "modulation.Xdeltas",
        "modulation.Ydeltas",
        "Xmodulation.deltas",
        "Ymodulation.deltas",
        "pos_emb.t",
        *(copy for copies in COPIES.values() for copy in copies),
    )

    direction: str = "standard"
    product_filter: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, site: Site) -> jax.Array:
        if self.direction not in DIRECTIONS:
            raise ValueError(f"direction={self.direction!r} must be one of {', '.join(DIRECTIONS)}")
        channels, (height, width) = x.shape[2], site.grid
        u = on_grid(Dense(3 * channels, dtype=self.dtype, name="in_proj")(x), site)
        u = DepthwiseConv(3 * channels, 3, self.dtype, self.conv_init, name="short_filter")(u)
        x0, x1, v = (wide(a) for a in jnp.split(u, 3, axis=-1))
        kernel, skip = ImplicitFilter(channels, site.grid, self.product_filter, name="filter_fn")()
        kernel = kernel / (2 * (height * width) ** 0.5)

        def seen(axes: tuple[int, ...]) -> jax.Array:
            return jnp.flip(causal_convolution(jnp.flip(x1 * v, axes), kernel), axes) + skip * (x1 * v)

        out = [x0 * seen(axes) for axes in DIRECTIONS[self.direction]]
        y = out[0] if len(out) == 1 else Dense(1, dtype=x0.dtype, name="linear_mix")(jnp.stack(out, axis=-1))[..., 0]
        return Dense(channels, dtype=self.dtype, name="out_proj")(y.reshape(x.shape))


def places(length: int) -> np.ndarray:
    """t of `ImplicitFilter`, (length,)."""
    return np.linspace(0, 1, length)


def decay_rates(channels: int) -> np.ndarray:
    """delta of `ImplicitFilter`, (channels,), negative."""
    return np.log(0.01) * np.linspace(1 / 1.5, 1 / 0.3, channels)


def original_buffers(channels: int, length: int, product_filter: bool) -> dict[str, np.ndarray]:
    """What the original's `filter_fn` has besides weights: name -> value."""
    delta = decay_rates(channels).astype(np.float32)[None, None]
    names = ("Xmodulation.deltas", "Ymodulation.deltas")
    names = names if product_filter else ("modulation.Xdeltas", "modulation.Ydeltas")
    return {"pos_emb.t": places(length).astype(np.float32)[None, :, None], **dict.fromkeys(names, delta)}


class ImplicitFilter(nn.Module):
    """The kernel (height, width, C) of Hyena, and D (C,), `bias`: a perceptron of positions times a decay.

    Positions `z` (1, L, 3), L the longer side, are parameters; at first [t, cos(1e-4 w), -sin(1e-4 w)], t from 0 to 1
    and w = 2 pi i / L. The decay is exp(-(t_row + t_column) |delta|), delta linear in the channel from ln(.01) / 1.5 to
    ln(.01) / 0.3.
    """

    channels: int
    grid: Grid
    product: bool

    @nn.compact
    def __call__(self) -> tuple[jax.Array, jax.Array]:
        length = max(self.grid)
        t = places(length)
        angle = 1e-4 * 2 * np.pi * np.arange(length) / length
        start = jnp.asarray(np.stack([t, np.cos(angle), -np.sin(angle)], axis=-1)[None], jnp.float32)
        z = _Own("z", lambda _: start, name="pos_emb")()[0]
        rows, columns = (z[:side] for side in self.grid)
        delta = np.abs(decay_rates(self.channels))
        decays = [jnp.asarray(np.exp(-t[:side, None] * delta), z.dtype) for side in self.grid]
        if self.product:
            freq = _Own("freq", _ones, name="Yimplicit_filter_1")()
            rows, columns = (
                self.perceptron(a, freq, name) * decay
                for a, name, decay in zip(
                    (rows, columns), ("Ximplicit_filter", "Yimplicit_filter"), decays, strict=True
                )
            )
            kernel = rows[:, None] * columns
        else:
            freq = _Own("freq", _ones, name="implicit_filter_1")()
            shape = (*self.grid, z.shape[1])
            both = jnp.concatenate([jnp.broadcast_to(a, shape) for a in (rows[:, None], columns)], axis=-1)
            kernel = self.perceptron(both, freq, "implicit_filter") * decays[0][:, None] * decays[1]
        return kernel, self.param("bias", nn.initializers.normal(1.0), (self.channels,))

    def perceptron(self, x: jax.Array, freq: jax.Array, name: str) -> jax.Array:
        for layer in (0, 2, 4):
            x = jnp.sin(freq * Dense(freq.shape[-1], name=f"{name}_{layer}")(x))
        return Dense(self.channels, use_bias=False, name=f"{name}_6")(x)


def _ones(key: jax.Array) -> jax.Array:
    return jnp.ones((1, 64))


class _Own(nn.Module):
    """One parameter that has a module to itself in the original."""

    leaf: str
    start: nn.initializers.Initializer

    @nn.compact
    def __call__(self) -> jax.Array:
        return self.param(self.leaf, self.start)
