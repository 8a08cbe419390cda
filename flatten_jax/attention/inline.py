"""InLine attention (Han et al., NeurIPS 2024, arXiv 2412.06590): injective by subtraction, and a local residual."""

from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from flatten_jax.attention.contract import Attention, Origin, Site, add_on_grid, heads
from flatten_jax.attention.core import centred_attention, dynamic_depthwise, values_on_grid
from flatten_jax.ops.gelu import gelu
from flatten_jax.ops.initializers import torch_conv_bias

# Of InLine's Swin file; the identity in all others.
FEATURE_MAPS = {
    "identity": lambda x: x,
    "relu": jax.nn.relu,
    "leakyrelu": jax.nn.leaky_relu,
    "exp": lambda x: jnp.exp(0.2 * x),
}


class InLine(Attention):
    """`centred_attention` of phi(q), phi(k) (eq. 5), + on the grid a 3 x 3 convolution of v with kernels made of x.

    The kernels are made of the mean of x over its tokens, one for each example and channel, by two linear layers within
    heads (`residual_0`, `residual_2`). In CSwin x is not normed, as in the official code. The code's s / N and its
    subtraction after the product come to the centred form exactly. Beyond the code, keys may be reduced: v is then
    resampled in two dimensions for the convolution.

    Attributes:
        feature_map: phi, "identity", "relu", "leakyrelu" or "exp" (exp(x / 5)).
    """

    origin: ClassVar[Origin] = Origin(
        paper="Han et al., NeurIPS 2024",
        arxiv="2412.06590",
        code="LeapLabTHU/InLine@e463a6f",
        licence="none",
        formula="mean v + q (k - mean k)^T (v - mean v) / (N sqrt(d)) + conv3x3(v; kernels of mean x)",
    )

    feature_map: str = "identity"

    @nn.compact
    def __call__(self, x: jax.Array, site: Site, q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        if self.feature_map not in FEATURE_MAPS:
            raise ValueError(f"feature_map={self.feature_map!r} must be one of {', '.join(FEATURE_MAPS)}")
        phi, channels = FEATURE_MAPS[self.feature_map], v.shape[2]
        q, k, v_ = (heads(a, self.num_heads) for a in (phi(q), phi(k), v))
        out = centred_attention(q, k, v_, q.shape[-1] ** -0.5).reshape(v.shape[0], -1, channels)
        hidden = gelu(_HeadDense(channels, self.num_heads, self.dtype, name="residual_0")(x.mean(axis=1)))
        weights = _HeadDense(9 * channels, self.num_heads, self.dtype, name="residual_2")(hidden)
        kernel = weights.reshape(-1, channels, 3, 3).transpose(0, 2, 3, 1)
        return add_on_grid(out, dynamic_depthwise(values_on_grid(v, site), kernel), site)


class _HeadDense(nn.Module):
    """A linear layer within each head, (B, C) -> (B, features): PyTorch's Conv1d of size 1 in groups."""

    features: int
    num_heads: int
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        width = x.shape[1] // self.num_heads
        kernel = self.param("kernel", torch_conv_bias(width), (1, width, self.features))
        bias = self.param("bias", torch_conv_bias(width), (self.features,))
        x, kernel, bias = nn.dtypes.promote_dtype(x, kernel, bias, dtype=self.dtype)
        kernel = kernel.reshape(width, self.num_heads, -1)
        return jnp.einsum("bhi,iho->bho", x.reshape(-1, self.num_heads, width), kernel).reshape(x.shape[0], -1) + bias
