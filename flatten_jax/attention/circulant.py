"""Circulant attention (Han et al., AAAI 2026, arXiv 2512.21542): scores by offset on the grid, by FFT."""

from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from flatten_jax.attention.contract import Attention, Grid, Origin, Site, on_grid
from flatten_jax.attention.core import wide
from flatten_jax.ops.dense import Dense


def circulant_attention(q: jax.Array, k: jax.Array, v: jax.Array, size: Grid) -> jax.Array:
    """sum_o softmax_o(sum_i q_i k_(i + o) / sqrt(N)) v_(i + o) for each channel, positions i and offsets o on a torus.

    Args:
        q, k, v: (B, height, width // 2 + 1, C), complex: orthonormal spectra (rfft2) of maps (B, height, width, C).
        size: (height, width).

    Returns:
        (B, height, width, C), real.
    """
    # The scale comes before the transform: XLA may compute what follows it twice, rounded in two ways, and the largest
    # score would then not be the largest of those it is taken from.
    scores = jnp.fft.irfft2(jnp.conj(q) * k * (size[0] * size[1]) ** 0.5, s=size, axes=(1, 2))
    weights = jax.nn.softmax(scores, axis=(1, 2))
    spectrum = jnp.fft.rfft2(weights, axes=(1, 2))
    return jnp.fft.irfft2(jnp.conj(spectrum) * v, s=size, axes=(1, 2), norm="ortho")


class Circulant(Attention):
    """`circulant_attention`, with silu(`gate` x) as a gate, then `proj`; O(N log N), every channel for itself.

    q, k, v are made of the spectrum of x (`qkv`, without bias), which is the spectrum of what is made of x. Transforms
    and softmax are in float32. Heads have no meaning. The scores see the edges of the grid joined.
    """

    origin: ClassVar[Origin] = Origin(
        paper="Han et al., AAAI 2026",
        arxiv="2512.21542",
        code="LeapLabTHU/Circulant-Attention@1292e34",
        licence="none",
        formula="irfft(conj(rfft(softmax(irfft(conj(Q) K)))) V) * silu(x W), Q, K, V = rfft(x) W",
    )
    streams: ClassVar[str] = ""
    takes_prefix: ClassVar[bool] = False
    takes_reduced: ClassVar[bool] = False

    @nn.compact
    def __call__(self, x: jax.Array, site: Site) -> jax.Array:
        channels = x.shape[2]
        gate = Dense(channels, dtype=self.dtype, name="gate_0")(x)
        spectrum = jnp.fft.rfft2(wide(on_grid(x, site)), axes=(1, 2), norm="ortho")
        # The sum over tokens is among these values, too large for float16.
        dtype = jnp.float32 if self.dtype == jnp.float16 else self.dtype
        parts = Dense(3 * channels, use_bias=False, dtype=dtype, name="qkv")(jnp.stack([spectrum.real, spectrum.imag]))
        q, k, v = jnp.split(jax.lax.complex(*wide(parts)), 3, axis=-1)
        out = circulant_attention(q, k, v, site.grid).reshape(x.shape)
        return Dense(channels, dtype=self.dtype, name="proj")(out * jax.nn.silu(wide(gate)))
