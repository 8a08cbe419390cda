"""Attention with convolutional projections, of CvT (Wu et al., ICCV 2021, arXiv 2103.15808)."""

from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from flatten_jax.attention.contract import Attention, Origin, Site, heads, on_grid
from flatten_jax.attention.core import Kernel
from flatten_jax.attention.softmax import softmax_attention
from flatten_jax.ops.batch_norm import BatchNorm
from flatten_jax.ops.dense import Dense
from flatten_jax.ops.depthwise import depthwise_conv
from flatten_jax.ops.initializers import TORCH_CONV, ConvInit


class CvT(Attention):
    """Softmax attention, whose q, k, v are linear in a 3 x 3 depthwise convolution of x, batch-normed.

    Keys and values have a grid `stride_kv` times coarser. Class tokens pass by the convolutions. Scores are divided by
    the root of C, not of the head's width, as in the official code. Layers: `conv_proj_q.conv`, `conv_proj_q.bn`,
    `proj_q` (likewise k, v), `proj`.

    Attributes:
        stride_kv: stride of the convolutions of keys and values.
    """

    origin: ClassVar[Origin] = Origin(
        paper="Wu et al., ICCV 2021",
        arxiv="2103.15808",
        code="microsoft/CvT@56984ed",
        licence="MIT",
        formula="softmax(q k^T / sqrt(C)) v, q, k, v = bn(dwconv3x3(x)) W",
    )
    linear_cost: ClassVar[bool] = False
    streams: ClassVar[str] = ""
    takes_reduced: ClassVar[bool] = False

    stride_kv: int = 2

    @nn.compact
    def __call__(self, x: jax.Array, site: Site) -> jax.Array:
        if self.stride_kv < 1:
            raise ValueError(f"stride_kv={self.stride_kv} must be at least 1")
        channels = x.shape[2]
        (x,) = nn.dtypes.promote_dtype(x, dtype=self.dtype)

        def projected(letter: str, stride: int) -> jax.Array:
            conv = ConvProjection(stride, self.conv_init, self.dtype, name=f"conv_proj_{letter}")
            y = conv(on_grid(x, site), site.train).reshape(x.shape[0], -1, channels)
            y = jnp.concatenate([x[:, : site.prefix], y], axis=1)
            return heads(Dense(channels, dtype=self.dtype, name=f"proj_{letter}")(y), self.num_heads)

        q, k, v = projected("q", 1), projected("k", self.stride_kv), projected("v", self.stride_kv)
        out = softmax_attention(q, k, v, scale=channels**-0.5)
        return Dense(channels, dtype=self.dtype, name="proj")(out.reshape(x.shape))


class ConvProjection(nn.Module):
    """`bn` of a 3 x 3 depthwise convolution `conv` without bias."""

    stride: int
    conv_init: ConvInit = TORCH_CONV
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        kernel = Kernel((3, 3, 1, x.shape[-1]), self.conv_init, name="conv")()[:, :, 0]
        # With one token of padding all around, strides start at the first token: a choice of what stride 1 gives.
        y = depthwise_conv(x, kernel)[:, :: self.stride, :: self.stride]
        return BatchNorm(dtype=self.dtype, name="bn")(y, train=train)
