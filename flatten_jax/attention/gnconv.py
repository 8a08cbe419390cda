"""Recursive gated convolution of HorNet (Rao et al., NeurIPS 2022, arXiv 2207.14284)."""

from collections.abc import Mapping
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from flatten_jax.attention.contract import Attention, Grid, Origin, Site, Sized, on_grid
from flatten_jax.attention.core import Kernel, wide
from flatten_jax.ops.dense import Dense
from flatten_jax.ops.depthwise import DepthwiseConv, depthwise_conv
from flatten_jax.ops.initializers import TORCH_CONV, linear_kernel
from flatten_jax.ops.norm import LayerNorm


def global_filter(x: jax.Array, weight: jax.Array) -> jax.Array:
    """irfft2(F * rfft2(x)), both orthonormal: a circular convolution with a kernel as large as the grid, in float32.

    Args:
        x: (B, height, width, C).
        weight: (C, rows, columns, 2), real and imaginary parts of F. A filter of another spectrum than the grid's
            (height, width // 2 + 1) is resized bilinearly, corners aligned, as in HorNet.

    Returns:
        (B, height, width, C), float32 at least.
    """
    x, weight, size = wide(x), wide(weight), x.shape[1:3]
    for axis, length in ((1, size[0]), (2, size[1] // 2 + 1)):
        if weight.shape[axis] != length:
            stretch = _aligned(weight.shape[axis], length).astype(weight.dtype)
            weight = jnp.moveaxis(jnp.tensordot(stretch, weight, (1, axis)), 0, axis)
    spectrum = jnp.fft.rfft2(x, axes=(1, 2), norm="ortho")
    weight = jax.lax.complex(weight[..., 0], weight[..., 1]).transpose(1, 2, 0)
    return jnp.fft.irfft2(spectrum * weight, s=size, axes=(1, 2), norm="ortho")


def _aligned(source: int, target: int) -> np.ndarray:
    """(target, source): linear interpolation whose first and last points are those of the source."""
    place = np.linspace(0, source - 1, target) if target > 1 else np.zeros(1)
    return np.maximum(0, 1 - np.abs(place[:, None] - np.arange(source)))


class GnConv(Attention):
    """Products of gates in turn: y = p * g_0, then y = pws_i(y) * g_(i+1); no softmax, no keys, no heads.

    `proj_in` makes p and the input of the gates, s times a 7 x 7 depthwise convolution `dwconv` of it. The widths of
    p and of the gates are C / 2^(order - 1), ..., C / 2, C. A product of order + 1 factors has as many times their
    rounding: all but `proj_out` is in float32.

    Attributes:
        order: n, the number of gates; 2, 3, 4, 5 in the stages of HorNet.
        gnconv_scale: s, 1/3 in all published HorNets.
        global_filter: the gates come from a `GlobalLocalFilter` instead of the 7 x 7 convolution (HorNet-GF).
        gf_size: side of the square grid that the filter is made for (14 and 7 in HorNet-GF). It is then resized to the
            grid at hand and fits every image. 0: the grid at hand, and no other.
    """

    origin: ClassVar[Origin] = Origin(
        paper="Rao et al., NeurIPS 2022",
        arxiv="2207.14284",
        code="raoyongming/HorNet@ac9e210",
        licence="MIT",
        formula="y = p g_0; y = W_i y * g_(i+1), i = 0 ... n - 2; g = s dwconv7x7(x W)",
    )
    streams: ClassVar[str] = ""
    takes_prefix: ClassVar[bool] = False
    takes_reduced: ClassVar[bool] = False
    sized: ClassVar[Mapping[str, Sized]] = {"complex_weight": Sized(axis=1, along="fixed", of="queries")}
    pointwise: ClassVar[tuple[str, ...]] = ("proj_in", "proj_out", "pws_0", "pws_1", "pws_2", "pws_3", "pws_4", "pws_5")

    order: int = 5
    gnconv_scale: float = 1.0
    global_filter: bool = False
    gf_size: int = 0

    def belongs(self) -> Mapping[str, Sized]:
        return {} if self.gf_size else self.sized  # a filter that is resized anyway fits every grid

    @nn.compact
    def __call__(self, x: jax.Array, site: Site) -> jax.Array:
        channels, order = x.shape[2], self.order
        if order < 1 or channels % 2 ** (order - 1):
            raise ValueError(f"{order=} must be at least 1, and 2^(order - 1) divide {channels=}: choose another order")
        if self.global_filter and (channels >> (order - 1)) % 2:
            raise ValueError(f"global_filter halves its channels: {channels=} must be divisible by 2^order, {order=}")
        widths = [channels >> (order - 1 - i) for i in range(order)]
        x = wide(on_grid(x, site))
        x = Dense(2 * channels, dtype=x.dtype, name="proj_in")(x)
        y, gates = x[..., : widths[0]], x[..., widths[0] :]
        if self.global_filter:
            side = (self.gf_size, self.gf_size) if self.gf_size else site.grid
            gates = GlobalLocalFilter(side, name="dwconv")(gates)
        else:
            gates = DepthwiseConv(sum(widths), 7, x.dtype, self.conv_init, name="dwconv")(gates)
        gates = jnp.split(gates * self.gnconv_scale, np.cumsum(widths)[:-1], axis=-1)
        y = y * gates[0]
        for i, gate in enumerate(gates[1:]):
            y = Dense(widths[i + 1], dtype=y.dtype, name=f"pws_{i}")(y) * gate
        out = Dense(channels, dtype=self.dtype, name="proj_out")(y)
        return out.reshape(out.shape[0], -1, channels)


class GlobalLocalFilter(nn.Module):
    """Half of the channels by a 3 x 3 depthwise convolution, the other half by `global_filter`, interleaved; two norms.

    Attributes:
        grid: whose spectrum `complex_weight` (C / 2, height, width // 2 + 1, 2) is.
    """

    grid: Grid

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """x: (B, height, width, C) -> the same shape, in float32 at least."""
        half, (height, width) = x.shape[-1] // 2, self.grid
        local, whole = jnp.split(LayerNorm(1e-6, name="pre_norm")(x), 2, axis=-1)
        kernel = Kernel((3, 3, 1, half), TORCH_CONV._replace(kernel=linear_kernel), name="dw")()
        local = depthwise_conv(local, kernel[:, :, 0])
        whole = global_filter(whole, self.param("complex_weight", linear_kernel, (half, height, width // 2 + 1, 2)))
        return LayerNorm(1e-6, name="post_norm")(jnp.stack([local, whole], axis=-1).reshape(x.shape))
