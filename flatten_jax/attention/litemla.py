"""LiteMLA of EfficientViT (Cai et al., ICCV 2023, arXiv 2205.14756): linear attention of ReLU features, multi-scale."""

from collections.abc import Mapping
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from flatten_jax.attention.contract import Attention, Origin, Site, heads
from flatten_jax.attention.core import Kernel, unnormalised, wide
from flatten_jax.ops.batch_norm import BatchNorm
from flatten_jax.ops.dense import Dense
from flatten_jax.ops.depthwise import depthwise_conv

EPSILON = 1e-15  # beside the sum over keys


def relu_linear_attention(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    """relu(q) (relu(k)^T v) / (relu(q) . sum relu(k) + 1e-15) per head; 0, with gradient 0, where the sum is 0.

    Args:
        q: (B, N, h, d).
        k, v: (B, M, h, d).

    Returns:
        (B, N, h, d) in float32 at least.
    """
    q, k = jax.nn.relu(q), jax.nn.relu(k)
    z = jnp.einsum("bnhd,bhd->bnh", wide(q), wide(k).mean(axis=1))[..., None]
    positive = z > 0  # else the derivative of 1 / 1e-15 would leave the range of float32
    return unnormalised(q, k, v) * jnp.where(positive, 1 / (jnp.where(positive, z, 1) + EPSILON / k.shape[1]), 0)


class LiteMLA(Attention):
    """`relu_linear_attention` of q, k, v and of their aggregates over neighbourhoods, each scale with heads of its own.

    Layers: `qkv_conv`, 1 x 1 without bias, to h triples (q, k, v) of m channels; for scale i `aggreg_i_0`, a depthwise
    convolution of all triples, and `aggreg_i_1`, 1 x 1 in groups of m channels, both without bias; `proj_conv`, 1 x 1
    without bias from the heads of all scales side by side; and `proj_norm`, a BatchNorm. All but it start
    as convolutions do.

    Attributes:
        dim: m, channels of a head; 16 or 32 in EfficientViT. 0: those of the host's heads, C / num_heads.
        heads_ratio: h = C // m * heads_ratio, rounded down.
        scales: odd sides of the depthwise convolutions, a number or several (in a model of several stages a tuple has
            an entry for each stage).
    """

    origin: ClassVar[Origin] = Origin(
        paper="Cai et al., ICCV 2023",
        arxiv="2205.14756",
        code="mit-han-lab/efficientvit@de7d773",
        licence="Apache-2.0",
        formula="BN(proj(relu(q) (relu(k)^T v) / (relu(q) . sum relu(k)))), heads of q, k, v and of conv(q, k, v)",
    )
    streams: ClassVar[str] = ""
    takes_prefix: ClassVar[bool] = False
    takes_reduced: ClassVar[bool] = False
    original: ClassVar[Mapping[str, str]] = {
        "qkv_conv": "qkv.conv",
        "proj_conv": "proj.conv",
        "proj_norm": "proj.norm",
    }
    pointwise: ClassVar[tuple[str, ...]] = ("qkv_conv", "proj_conv")

    dim: int = 0
    heads_ratio: float = 1.0
    scales: int | tuple[int, ...] = 5

    @nn.compact
    def __call__(self, x: jax.Array, site: Site) -> jax.Array:
        batch, tokens, channels = x.shape
        dim = self.dim or channels // self.num_heads
        count = int(channels // dim * self.heads_ratio)
        if count < 1:
            raise ValueError(f"dim={dim} and heads_ratio={self.heads_ratio} leave no head of {channels=}: lower dim")
        width = 3 * count * dim
        qkv = Dense(width, use_bias=False, dtype=self.dtype, initial=self.conv_init, name="qkv_conv")(x)
        parts = [qkv]
        for i, size in enumerate((self.scales,) if isinstance(self.scales, int) else self.scales):
            around = Kernel((size, size, 1, width), self.conv_init, name=f"aggreg_{i}_0")()
            within = Kernel((1, 1, dim, width), self.conv_init, name=f"aggreg_{i}_1")()
            y = depthwise_conv(qkv.reshape(batch, *site.grid, width), around[:, :, 0]).reshape(batch, tokens, -1, dim)
            within = within.reshape(dim, -1, dim).astype(y.dtype)
            parts.append(jnp.einsum("bngi,igo->bngo", y, within).reshape(batch, tokens, width))
        triples = heads(jnp.concatenate(parts, axis=-1), len(parts) * count)
        out = relu_linear_attention(*jnp.split(triples, 3, axis=-1)).astype(qkv.dtype).reshape(batch, tokens, -1)
        out = Dense(channels, use_bias=False, dtype=self.dtype, initial=self.conv_init, name="proj_conv")(out)
        return BatchNorm(dtype=self.dtype, name="proj_norm")(out, site.train)
