"""L2ViT's two halves (Zheng, 2025, arXiv 2501.16182): linear global attention, and its local sub-layer."""

from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from flatten_jax.attention.contract import Attention, Origin, Site, heads, on_grid
from flatten_jax.attention.core import clamped_attention
from flatten_jax.ops.batch_norm import BatchNorm
from flatten_jax.ops.depthwise import DepthwiseConv
from flatten_jax.ops.gelu import gelu
from flatten_jax.ops.initializers import TORCH_CONV, ConvInit

LOWEST = 100.0  # of the normaliser, a sum over keys


class L2ViT(Attention):
    """LGA: T relu(q) (relu(k)^T v) / max(relu(q) . sum relu(k), 100) per head.

    Parameter: `temperature` T (h, 1, 1), at first d^-1/2. The 100 stands beside a sum over keys, and does not follow
    their number: in small windows it acts on most rows, and the result shrinks.
    """

    origin: ClassVar[Origin] = Origin(
        paper="Zheng, 2025",
        arxiv="2501.16182",
        code="ChuanyangZheng/L2ViT@fad0341",
        licence="MIT",
        formula="T q (k^T v) / max(q . sum k, 100), q, k = relu(q), relu(k)",
    )

    @nn.compact
    def __call__(self, x: jax.Array, site: Site, q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        q, k, v_ = (heads(a, self.num_heads) for a in (jax.nn.relu(q), jax.nn.relu(k), v))
        start = nn.initializers.constant(q.shape[-1] ** -0.5)
        temperature = self.param("temperature", start, (self.num_heads, 1, 1))
        out = clamped_attention(q, k, v_, LOWEST) * temperature[:, 0]
        return out.astype(v.dtype).reshape(*q.shape[:2], -1)


class LCM(nn.Module):
    """The local sub-layer: depthwise convolution `conv1`, GELU, BatchNorm `bn`, depthwise convolution `conv2`.

    A residual sub-layer of a block beside its attention, in L2ViT; with 3 x 3 kernels XCiT's LPI. Nothing is added to
    tokens of the prefix.

    Attributes:
        kernel_size: side of the convolutions.
        dtype: of the computation.
        conv_init: initial values of the convolutions.
    """

    kernel_size: int = 7
    dtype: jnp.dtype | None = None
    conv_init: ConvInit = TORCH_CONV

    @nn.compact
    def __call__(self, x: jax.Array, site: Site) -> jax.Array:
        """x: (B, prefix + N, C) -> the same shape, zeros for the prefix."""

        def conv(name: str) -> DepthwiseConv:
            return DepthwiseConv(x.shape[2], self.kernel_size, self.dtype, self.conv_init, name=name)

        y = gelu(conv("conv1")(on_grid(x, site)))
        y = conv("conv2")(BatchNorm(dtype=self.dtype, name="bn")(y, site.train))
        return jnp.pad(y.reshape(y.shape[0], -1, y.shape[3]), ((0, 0), (site.prefix, 0), (0, 0)))
