"""MSVMamba (Shi et al., NeurIPS 2024, arXiv 2405.14174): selective scans at two scales, four stages."""

from collections.abc import Callable
from functools import partial
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from flatten_jax.attention import Site
from flatten_jax.attention.contract import on_grid
from flatten_jax.models.blocks import dropped_path
from flatten_jax.models.published import Published
from flatten_jax.models.staged import Doubling, Layered
from flatten_jax.models.swin import PatchMerging
from flatten_jax.ops.convolution import Conv
from flatten_jax.ops.depthwise import DepthwiseConv
from flatten_jax.ops.gelu import gelu
from flatten_jax.ops.norm import LayerNorm


class MSVMamba(Layered, Doubling):
    """MSVMamba of the configurations "ms": any image_size of 4 pixels and more; odd grids get a row of zeros.

    Attributes: those of `Backbone`, and
        attn_type: an attention for each stage, see `attention.pattern`; all tokens of a stage together.
        embed_dim, depths: the architecture; the width doubles from stage to stage.
        num_heads: of other attentions; "ms2d" has none.
        mlp_ratio: hidden width of the convolutional MLP.
    """

    hallmark: ClassVar[str] = "layers.0.blocks.0.op.conv2d_b1.weight"
    epsilon: ClassVar[float] = 1e-5

    attn_type: str = "ms2d"
    embed_dim: int = 48
    depths: tuple[int, ...] = (1, 2, 5, 2)
    num_heads: tuple[int, ...] = (2, 4, 8, 16)
    mlp_ratio: float = 2.0

    def original(self, name: str) -> str:
        return f"classifier.{name}" if name.startswith(("norm.", "head.")) else name

    def stem(self, images: jax.Array, train: bool) -> jax.Array:
        if min(self.image_size) < 4:
            raise ValueError(f"image_size={self.image_size} is smaller than a patch of 4: use a larger image")
        x = Conv(self.embed_dim, 4, 4, dtype=self.dtype, name="patch_embed_0")(images)
        return LayerNorm(epsilon=self.epsilon, dtype=self.dtype, name="patch_embed_2")(x)

    @nn.nowrap
    def blocks(self, x: jax.Array, i: int, train: bool) -> jax.Array:
        site = Site(x.shape[1:3], train=train)
        return self.stage(x, site, i, "blocks_", block=MambaBlock, mlp_ratio=self.mlp_ratio)[-1]

    @nn.nowrap
    def downsample(self, x: jax.Array, i: int, train: bool) -> jax.Array:
        return PatchMerging(self.epsilon, self.dtype, name="downsample")(x)


class MambaBlock(nn.Module):
    """x + op(norm(x)), then x + convFFN(norm2(x)), each with drop-path.

    Attributes:
        attention: makes the host of the mixer, `op`.
        mlp_ratio: hidden width of the MLP over C.
        epsilon: of the LayerNorms.
    """

    attention: Callable[..., nn.Module]
    mlp_ratio: float = 2.0
    epsilon: float = 1e-5
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, x: jax.Array, site: Site, rate: float | jax.Array = 0.0) -> tuple[jax.Array, jax.Array]:
        """x: (B, N, C), rate: of drop-path -> (x, what the mixer gave)."""
        norm = partial(LayerNorm, epsilon=self.epsilon, dtype=self.dtype)
        dropped = partial(dropped_path, self, rate=rate, train=site.train)
        mixed = self.attention(name="op")(norm(name="norm")(x), site)
        x = x + dropped(mixed)
        mlp = ConvMlp(int(x.shape[-1] * self.mlp_ratio), dtype=self.dtype, name="convFFN")
        return x + dropped(mlp(norm(name="norm2")(x), site)), mixed


class ConvMlp(nn.Module):
    """linear2(gelu(y + dwc(y))), y = linear1(x); `dwc` is a 3 x 3 depthwise convolution."""

    hidden_dim: int
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, x: jax.Array, site: Site) -> jax.Array:
        """(B, N, C) -> (B, N, C)."""
        y = Conv(self.hidden_dim, 1, dtype=self.dtype, name="linear1")(on_grid(x, site))
        y = y + DepthwiseConv(self.hidden_dim, 3, self.dtype, name="dwc")(y)
        return Conv(x.shape[-1], 1, dtype=self.dtype, name="linear2")(gelu(y)).reshape(x.shape)


FAMILY = MSVMamba
MODELS = {
    "msvmamba_n": dict(embed_dim=48, depths=(1, 2, 5, 2)),
    "msvmamba_m": dict(embed_dim=64, depths=(1, 2, 5, 2)),
    "msvmamba_t": dict(embed_dim=96, depths=(1, 2, 9, 2), num_heads=(3, 6, 12, 24)),
}
ALIASES: dict[str, str] = {}
PUBLISHED = {
    "msvmamba_n": Published(77.3),
    "msvmamba_m": Published(79.8),
    "msvmamba_t": Published(82.8),
}
