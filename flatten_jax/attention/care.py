"""CARE's token mixer: half local, half linear attention, beside channels kept as memory (Zhou et al., CVPR 2025,
arXiv 2411.16170).
"""

from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from flatten_jax.attention.contract import Attention, Origin, Site, heads, on_grid
from flatten_jax.attention.core import elu1, linear_attention, wide
from flatten_jax.ops.dense import Dense, promote
from flatten_jax.ops.depthwise import DepthwiseConv
from flatten_jax.ops.initializers import TORCH_CONV, ConvInit


class Care(Attention):
    """Channels in four parts, memory | a | b | c, the last three of g each: memory as it is, linear attention of a, a
    3 x 3 depthwise convolution of b and a 7 x 7 one of c.

    The attention has q, k = elu1(`qk` a) and values a. There is no output projection: in CARE a convolutional block
    mixes the parts afterwards, so this is the mixer of that backbone; elsewhere the MLP has to mix them.

    Attributes:
        mem_dim: channels of the memory, C - 3 g; 0: C - 3 (C // 4), a quarter.
        att_head_dim: width of the heads of a (16 and 32 in CARE); 0: g / num_heads.
        if_att: attention of a; without, an 11 x 1 and a 1 x 11 depthwise convolution of a are added (CARE's first two
            stages).
    """

    origin: ClassVar[Origin] = Origin(
        paper="Zhou et al., CVPR 2025",
        arxiv="2411.16170",
        code="zhouyuan888888/CARE-Transformer@400bf94",
        licence="none",
        formula="[memory, phi(q) (phi(k)^T a) / (phi(q) . sum phi(k)), dwconv3x3(b), dwconv7x7(c)], phi = elu + 1",
    )
    streams: ClassVar[str] = ""
    takes_prefix: ClassVar[bool] = False
    takes_reduced: ClassVar[bool] = False
    pointwise: ClassVar[tuple[str, ...]] = ("qk",)
    # A digit after one underscore would be an entry of a list.
    original: ClassVar[dict[str, str]] = {"dwconvatt_1": "dwconvatt__1", "dwconvatt_2": "dwconvatt__2"}

    mem_dim: int = 0
    att_head_dim: int = 0
    if_att: bool = True

    @nn.compact
    def __call__(self, x: jax.Array, site: Site) -> jax.Array:
        channels = x.shape[2]
        group = (channels - self.mem_dim) // 3 if self.mem_dim else channels // 4
        memory = channels - 3 * group
        if group < 1 or self.mem_dim not in (0, memory):
            raise ValueError(f"mem_dim={self.mem_dim} must leave three equal parts of {channels=}: C - 3 g, or 0")
        width = self.att_head_dim or max(1, group // self.num_heads)
        if self.if_att and group % width:
            raise ValueError(
                f"att_head_dim={width} does not divide the {group} channels of attention: choose a divisor"
            )
        (x,) = nn.dtypes.promote_dtype(x, dtype=self.dtype)
        kept, a, b, c = jnp.split(on_grid(x, site), [memory, memory + group, memory + 2 * group], axis=-1)
        if self.if_att:
            tokens = a.reshape(a.shape[0], -1, group)
            q, k = jnp.split(elu1(Dense(2 * group, dtype=self.dtype, name="qk")(tokens)), 2, axis=-1)
            q, k, v = (heads(t, group // width) for t in (q, k, tokens))
            a = linear_attention(q, k, v, self.dtype).reshape(a.shape)
        else:
            tall = DepthwiseStrip((11, 1), self.conv_init, self.dtype, name="dwconvatt_1")(a)
            a = tall + DepthwiseStrip((1, 11), self.conv_init, self.dtype, name="dwconvatt_2")(a)
        b = DepthwiseConv(group, 3, self.dtype, self.conv_init, name="dwconv1")(b)
        c = DepthwiseConv(group, 7, self.dtype, self.conv_init, name="dwconv2")(c)
        return jnp.concatenate([kept, a, b, c], axis=-1).reshape(x.shape)


class DepthwiseStrip(nn.Module):
    """A depthwise convolution that is long one way, of any odd sides: shifted multiply-adds, zeros around.

    Attributes:
        sides: (height, width) of the kernel.
    """

    sides: tuple[int, int]
    conv_init: ConvInit = TORCH_CONV
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """x: (B, height, width, C) -> the same shape."""
        channels = x.shape[3]
        kernel = self.param("kernel", self.conv_init.kernel, (*self.sides, 1, channels))
        bias = self.param("bias", self.conv_init.bias(self.sides[0] * self.sides[1]), (channels,))
        x, kernel, bias = promote(x, kernel, bias, self.dtype)
        return (depthwise_strip(wide(x), kernel[:, :, 0]) + bias).astype(x.dtype)


@jax.jit
def depthwise_strip(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """x (B, height, width, C), kernel of any odd sides (k, l, C) -> the shape of x; zeros around."""
    (tall, wide_), (height, width) = kernel.shape[:2], x.shape[1:3]
    padded = jnp.pad(x, ((0, 0), (tall // 2, tall // 2), (wide_ // 2, wide_ // 2), (0, 0)))
    return sum(padded[:, i : i + height, j : j + width] * kernel[i, j] for i in range(tall) for j in range(wide_))
