"""ConvNeXt: large depthwise convolutions and pointwise layers in the stages of a hierarchical transformer."""

from collections.abc import Sequence
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from flatten_jax.attention import Site
from flatten_jax.models.backbone import Backbone
from flatten_jax.models.blocks import drop_path_rates, dropped_path, scaled
from flatten_jax.models.published import Published
from flatten_jax.models.stack import rematerialised, run_blocks
from flatten_jax.models.staged import Staged
from flatten_jax.ops.convolution import Conv
from flatten_jax.ops.cpu import gradient_apart
from flatten_jax.ops.dense import Dense
from flatten_jax.ops.depthwise import DepthwiseConv
from flatten_jax.ops.gelu import gelu
from flatten_jax.ops.initializers import NORMAL
from flatten_jax.ops.norm import LayerNorm


class ConvNeXt(Staged):
    """ConvNeXt (Liu et al., CVPR 2022, arXiv 2201.03545). It has no attention to exchange.

    Any image_size of 32 pixels or more; what is left of an odd grid is cut off, as in the original. The mean over the
    grid is normalised, not the map, so `forward_features` gives the map of the last block. With `feature_norm` maps
    have the norms of the original's detection code.

    Attributes: those of `Backbone`, and
        embed_dims, depths: the architecture, one entry per stage.
        layer_scale: initial value of the factors of the residuals.
    """

    hallmark: ClassVar[str] = "stages.0.0.dwconv.weight"
    level_name: ClassVar[str] = "stages.{0}"

    attn_type: str = ""
    embed_dims: tuple[int, ...] = (96, 192, 384, 768)
    depths: tuple[int, ...] = (3, 3, 9, 3)
    layer_scale: float = 1e-6

    attentions = Backbone.attentions

    def rates(self) -> list[list[float]]:
        return drop_path_rates(self.drop_path, self.depths)

    def levels(self, images: jax.Array, train: bool, count: int) -> list[jax.Array]:
        if min(self.image_size) < self.stride:
            raise ValueError(f"image_size={self.image_size} leaves no grid: use {self.stride} pixels or more")
        x, levels = images, []
        for i in range(count):
            x = self.blocks(self._downsampled(x, i), i, train)
            levels.append(x)
        return levels

    @nn.nowrap
    def _downsampled(self, x: jax.Array, i: int) -> jax.Array:
        """The stem, or the step to stage i: the norm stands after the one and before the other."""
        side = 4 if i == 0 else 2
        name = f"downsample_layers_{i}_"
        conv = Conv(
            self.embed_dims[i], side, side, conv_init=NORMAL, dtype=self.dtype, name=f"{name}{0 if i == 0 else 1}"
        )
        norm = LayerNorm(epsilon=self.epsilon, dtype=self.dtype, name=f"{name}{1 if i == 0 else 0}")
        return norm(conv(x)) if i == 0 else conv(norm(x))

    @nn.nowrap
    def blocks(self, x: jax.Array, i: int, train: bool) -> jax.Array:
        """The blocks of stage i on a map (B, height, width, C)."""
        return convnext_blocks(self, x, train, self.rates()[i], f"stages_{i}_", self.layer_scale, self.scan)[-1]

    def final_norm(self, x: jax.Array) -> jax.Array:
        return x

    def pool(self, x: jax.Array) -> jax.Array:
        return LayerNorm(epsilon=self.epsilon, dtype=self.dtype, name="norm")(x.mean(axis=(1, 2)))


def convnext_blocks(
    model: Backbone,
    x: jax.Array,
    train: bool,
    rates: Sequence[float],
    name: str,
    layer_scale: float,
    scan: bool,
) -> list[jax.Array]:
    """What each of a stage's blocks gives, (B, height, width, C); with `scan` only what the last one gives.

    Args:
        rates: of drop-path, one for each block.
        name: of the blocks, to which their number is added.
    """
    block = rematerialised(ConvNeXtBlock, model.remat_policy) if model.remat else ConvNeXtBlock
    blocks = [block(layer_scale, model.epsilon, model.dtype, name=f"{name}{j}") for j in range(len(rates))]
    return run_blocks(blocks, [0] * len(rates), rates, x, Site(x.shape[1:3], train=train), scan=scan)


class ConvNeXtBlock(nn.Module):
    """x + gamma * pwconv2(gelu(pwconv1(norm(dwconv(x))))), with drop-path.

    Attributes:
        layer_scale: initial gamma; 0: there is none.
        epsilon: of the LayerNorm.
    """

    layer_scale: float
    epsilon: float
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, x: jax.Array, site: Site, rate: float | jax.Array = 0.0) -> tuple[jax.Array, jax.Array]:
        """x: (B, height, width, C), rate: of `drop_path` -> (x, the residual), both (B, height, width, C)."""
        x, channels = gradient_apart(x), x.shape[-1]
        y = DepthwiseConv(channels, 7, self.dtype, NORMAL, name="dwconv")(x)
        y = pointwise(LayerNorm(self.epsilon, self.dtype, name="norm")(y), self.dtype)
        y = scaled(self, "gamma", y, self.layer_scale) if self.layer_scale else y
        return x + dropped_path(self, y, rate, site.train), y


def pointwise(x: jax.Array, dtype: jnp.dtype | None) -> jax.Array:
    """pwconv2(gelu(pwconv1(x))) as layers of the calling module: (..., C) -> (..., C), 4 C between."""
    hidden = gelu(Dense(4 * x.shape[-1], dtype=dtype, name="pwconv1")(x))
    return Dense(x.shape[-1], dtype=dtype, name="pwconv2")(hidden)


FAMILY = ConvNeXt
MODELS = {
    "convnext_t": dict(embed_dims=(96, 192, 384, 768), depths=(3, 3, 9, 3)),
    "convnext_s": dict(embed_dims=(96, 192, 384, 768), depths=(3, 3, 27, 3)),
    "convnext_b": dict(embed_dims=(128, 256, 512, 1024), depths=(3, 3, 27, 3)),
    "convnext_l": dict(embed_dims=(192, 384, 768, 1536), depths=(3, 3, 27, 3)),
}
ALIASES = {f"convnext_{size}": f"convnext_{size[0]}" for size in ("tiny", "small", "base", "large")}
PUBLISHED = {
    "convnext_t": Published(82.1),
    "convnext_s": Published(83.1),
    "convnext_b": Published(83.8),
    "convnext_l": Published(84.3),
}
