"""SkipAt (Venkataramanan et al., ICLR 2024, arXiv 2301.02240): what the attention before gave, made fit again."""

from collections.abc import Mapping
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from flatten_jax.attention.contract import Attention, Origin, Site, on_grid
from flatten_jax.attention.core import wide
from flatten_jax.ops.dense import Dense
from flatten_jax.ops.depthwise import DepthwiseConv
from flatten_jax.ops.gelu import gelu
from flatten_jax.ops.initializers import torch_conv_kernel


def channel_attention(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """x sigmoid(sum_i kernel_i mean_{c+i-1}): channels gated by means of themselves and neighbours (ECA).

    Args:
        x: (B, N, C).
        kernel: (3,), cross-correlated along the channels, zeros around.

    Returns:
        (B, N, C).
    """
    means = jnp.pad(wide(x).mean(axis=1), ((0, 0), (1, 1)))
    gate = sum(kernel[i] * means[:, i : i + x.shape[2]] for i in range(3))
    return x * nn.sigmoid(gate)[:, None].astype(x.dtype)


class SkipAt(Attention):
    """eca(linear2(gelu(dwconv(gelu(linear1(before)))))): no attention; `before` is what the block before attended to.

    `before` is `site.before`, after its projection and before drop-path and residual; x is not looked at. It has to be
    of the same stage, as in "softmax*3+skipat*6+softmax", which is the paper's DeiT. Tokens before the grid stay as
    they are in `before`. Parameters: `linear1_0`, C to 2 C; `dwconv_0`, a depthwise convolution, 5 x 5; `linear2_0`,
    2 C to C; `eca_conv`, the kernel of `channel_attention`. Beyond the official code, grids need not be square.
    """

    origin: ClassVar[Origin] = Origin(
        paper="Venkataramanan et al., ICLR 2024",
        arxiv="2301.02240",
        code="Qualcomm-AI-research/skip-attention@a7a312d",
        licence="BSD-3-Clause-Clear",
        formula="y * sigmoid(conv3(mean y)), y = gelu(dwc(gelu(before W1))) W2, before: the last attention's result",
    )
    streams: ClassVar[str] = ""
    takes_reduced: ClassVar[bool] = False
    takes_before: ClassVar[bool] = True
    original: ClassVar[Mapping[str, str]] = {"eca_conv": "eca.conv"}

    @nn.compact
    def __call__(self, x: jax.Array, site: Site) -> jax.Array:
        if site.before is None:
            raise ValueError(
                "skipat uses again what an attention before it gave: it cannot be the first of a stage, "
                'write attn_type="softmax+skipat" or the like'
            )
        channels, before = x.shape[2], site.before
        hidden = gelu(Dense(2 * channels, dtype=self.dtype, name="linear1_0")(on_grid(before, site)))
        hidden = gelu(DepthwiseConv(2 * channels, 5, self.dtype, self.conv_init, name="dwconv_0")(hidden))
        out = Dense(channels, dtype=self.dtype, name="linear2_0")(hidden)
        out = _ECA(name="eca_conv")(out.reshape(out.shape[0], -1, channels))
        return jnp.concatenate([before[:, : site.prefix].astype(out.dtype), out], axis=1)


class _ECA(nn.Module):
    """`channel_attention` with a learned kernel, which is PyTorch's of a convolution of one channel to one."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return channel_attention(x, self.param("kernel", torch_conv_kernel, (3, 1, 1)).reshape(3))
