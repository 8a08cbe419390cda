"""The spectral gate of the Scattering Vision Transformer (Patro and Agneeswaran, NeurIPS 2023, arXiv 2311.01310).

One level of the dual-tree complex wavelet transform (Kingsbury, "Complex wavelets for shift invariant analysis and
filtering of signals", 2001) with his near-symmetric filters of 13 and 19 taps.
"""

import functools
from collections.abc import Callable, Mapping
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from flatten_jax.attention.contract import Attention, Origin, Site, Sized, on_grid
from flatten_jax.attention.core import wide
from flatten_jax.ops import cpu
from flatten_jax.ops.derivative import with_backward
from flatten_jax.ops.initializers import linear_kernel
from flatten_jax.ops.platform import platform_dependent

_HALF0 = np.array([-9, 0, 114, -240, -247, 1520, 2844]) / 5120
_HALF1 = np.array([81, 0, -1539, -2160, 8208, 27360, -63816, -59280, 343786, 641600]) / 1146880
LOW = (*_HALF0, *_HALF0[-2::-1])
LOW_BACK = (*_HALF1, *_HALF1[-2::-1])
HIGH = tuple(LOW_BACK * (-1.0) ** (np.arange(19) - 9))
HIGH_BACK = tuple(LOW * (-1.0) ** (np.arange(13) - 6))


def filtered(x: jax.Array, taps: tuple[float, ...], axis: int) -> jax.Array:
    """Convolution along an axis with an odd number of symmetric taps, of the same length; edges are mirrored.

    A mirrored edge begins with the edge itself: -1 is 0, -2 is 1. So the filter is a symmetric matrix, and its gradient
    is filtered likewise.
    """
    half = len(taps) // 2
    padded = jnp.pad(x, [(half, half) if i == axis else (0, 0) for i in range(x.ndim)], mode="symmetric")
    plain = functools.partial(_weighted, axis=axis)
    return platform_dependent(padded, jnp.asarray(taps, x.dtype), cpu=_weighted_apart(axis), default=plain)


def _forward(x: jax.Array, taps: tuple[float, ...], axis: int) -> tuple[jax.Array, None]:
    return filtered(x, taps, axis), None


def _backward(taps: tuple[float, ...], axis: int, _: None, gradient: jax.Array) -> tuple[jax.Array]:
    return (filtered(gradient, taps, axis),)


filtered = with_backward(filtered, _forward, _backward, nondiff_argnums=(1, 2))


def _weighted(padded: jax.Array, taps: jax.Array, axis: int) -> jax.Array:
    """Sum of taps[i] times padded from i on."""
    length = padded.shape[axis] - len(taps) + 1
    shifted = [jax.lax.slice_in_dim(padded, i, i + length, axis=axis) for i in range(len(taps))]
    out = taps[len(taps) // 2] * shifted[len(taps) // 2]
    for i in range(len(taps) // 2):
        out = out + taps[i] * (shifted[i] + shifted[-1 - i])
    return out


@functools.cache
def _weighted_apart(axis: int) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """On the CPU one pass over memory for each filter, compiled once for all of a length."""
    return cpu.apart(functools.partial(_weighted, axis=axis))


def analysis(x: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """One level of the dual-tree complex wavelet transform: x (B, height, width, C) of even sides.

    Returns:
        what is low in both directions, (B, height, width, C); real and imaginary parts of six oriented images,
        (6, B, height / 2, width / 2, C) each.
    """
    low, high = filtered(x, LOW, 2), filtered(x, HIGH, 2)
    bands = filtered(low, HIGH, 1), filtered(high, HIGH, 1), filtered(high, LOW, 1)
    pairs = [_to_complex(band) for band in bands]
    images = [first for first, _ in pairs] + [second for _, second in reversed(pairs)]
    real, imaginary = (jnp.stack(parts) for parts in zip(*images, strict=True))
    return filtered(low, LOW, 1), real, imaginary


def synthesis(low: jax.Array, real: jax.Array, imaginary: jax.Array) -> jax.Array:
    """The inverse of `analysis`, exact: (B, height, width, C)."""
    rows, diagonal, columns = (_to_cells(real[i], imaginary[i], real[5 - i], imaginary[5 - i]) for i in range(3))
    high = filtered(diagonal, HIGH_BACK, 1) + filtered(columns, LOW_BACK, 1)
    low = filtered(rows, HIGH_BACK, 1) + filtered(low, LOW_BACK, 1)
    return filtered(high, HIGH_BACK, 2) + filtered(low, LOW_BACK, 2)


def _to_complex(band: jax.Array) -> tuple[tuple[jax.Array, jax.Array], tuple[jax.Array, jax.Array]]:
    """Cells a b / c d of 2 x 2 pixels -> (a - d) + i (b + c) and (a + d) + i (b - c), over the root of 2."""
    band = band * 0.5**0.5
    a, b, c, d = band[:, ::2, ::2], band[:, ::2, 1::2], band[:, 1::2, ::2], band[:, 1::2, 1::2]
    return (a - d, b + c), (a + d, b - c)


def _to_cells(real: jax.Array, imaginary: jax.Array, real2: jax.Array, imaginary2: jax.Array) -> jax.Array:
    """The inverse of `_to_complex`."""
    top = jnp.stack([real + real2, imaginary + imaginary2], axis=3)
    bottom = jnp.stack([imaginary - imaginary2, real2 - real], axis=3)
    batch, height, width, channels = real.shape
    return jnp.stack([top, bottom], axis=2).reshape(batch, 2 * height, 2 * width, channels) * 0.5**0.5


class SVT(Attention):
    """Gates in the wavelet domain: the low band times a weight at each place, the six others through a perceptron.

    The perceptron is complex, within groups of channels, and the same for all places and orientations; its ReLU takes
    real and imaginary parts apart. No heads, keys or projections. All of it is in float32. The original has even grids
    only; here the last row or column of an odd one is doubled, and cut off again.

    Attributes:
        num_blocks: groups of channels, a divisor of C; 4 in the original.
    """

    origin: ClassVar[Origin] = Origin(
        paper="Patro and Agneeswaran, NeurIPS 2023",
        arxiv="2311.01310",
        code="badripatro/svt",
        licence="none",
        formula="W^-1 (w * low, W2 relu(W1 z + b1) + b2), (low, z) = W x",
    )
    streams: ClassVar[str] = ""
    takes_prefix: ClassVar[bool] = False
    takes_reduced: ClassVar[bool] = False
    sized: ClassVar[Mapping[str, Sized]] = {"complex_weight_ll": Sized(axis=1, along="fixed", of="queries")}

    num_blocks: int = 4

    @nn.compact
    def __call__(self, x: jax.Array, site: Site) -> jax.Array:
        (height, width), channels, blocks = site.grid, x.shape[2], self.num_blocks
        if blocks < 1 or channels % blocks:
            raise ValueError(f"{channels=} is not divisible by num_blocks={blocks}")
        (x,) = nn.dtypes.promote_dtype(x, dtype=self.dtype)
        padded = jnp.pad(wide(on_grid(x, site)), ((0, 0), (0, height % 2), (0, width % 2), (0, 0)), mode="edge")
        low, real, imaginary = analysis(padded)

        gate = self.param("complex_weight_ll", linear_kernel, (channels, *padded.shape[1:3]))
        low = low * gate.transpose(1, 2, 0)
        for layer in (1, 2):
            share = channels // blocks
            weight = self.param(f"complex_weight_lh_{layer}", linear_kernel, (2, blocks, share, share))
            bias = self.param(f"complex_weight_lh_b{layer}", linear_kernel, (2, blocks, share))
            real, imaginary = complex_linear(real, imaginary, weight, bias)
            if layer == 1:
                real, imaginary = nn.relu(real), nn.relu(imaginary)
        out = synthesis(low, real, imaginary)[:, :height, :width]
        return out.reshape(x.shape).astype(x.dtype)


def complex_linear(
    real: jax.Array, imaginary: jax.Array, weight: jax.Array, bias: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """z W + b in the complex numbers, within groups of channels.

    Args:
        real, imaginary: (..., C), the parts of z.
        weight: (2, groups, C / groups, C / groups), the parts of W.
        bias: (2, groups, C / groups), the parts of b.

    Returns:
        The parts of the result, (..., C) each.
    """
    shape = real.shape
    z = jnp.stack([real, imaginary], axis=-2).reshape(*shape[:-1], 2, *bias.shape[1:])
    # One real product: (real, imaginary) times ((Re W, Im W), (-Im W, Re W)).
    whole = jnp.stack([weight, jnp.stack([-weight[1], weight[0]])])
    out = jnp.einsum("...pgc,pqgce->...qge", z, whole) + bias
    return out[..., 0, :, :].reshape(shape), out[..., 1, :, :].reshape(shape)
