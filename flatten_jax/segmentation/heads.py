"""Heads of semantic segmentation over the maps of a backbone, in the form of mmsegmentation 0.x, and with its names.

UPerNet: Xiao et al., ECCV 2018, arXiv 1807.10221. Semantic FPN: Kirillov et al., CVPR 2019, arXiv 1901.02446.
"""

import math
from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from flatten_jax.attention.core import adaptive_pool
from flatten_jax.ops.batch_norm import BatchNorm
from flatten_jax.ops.convolution import Conv
from flatten_jax.ops.initializers import FAN_OUT_CONV, ConvInit
from flatten_jax.segmentation.resize import bilinear, nearest

# PyTorch's xavier_uniform_, of the neck; and the classifiers' normal_(std=0.01). Biases are zeros.
_XAVIER = ConvInit(nn.initializers.xavier_uniform(), lambda fan_in: nn.initializers.zeros)
_SMALL = ConvInit(nn.initializers.normal(0.01), lambda fan_in: nn.initializers.zeros)


class ConvModule(nn.Module):
    """A convolution `conv`, and unless it is a plain one a BatchNorm `bn` and a ReLU: mmcv's ConvModule.

    Attributes:
        features: channels out.
        kernel_size: odd; sides stay.
        plain: a bias instead of norm and ReLU, as in the neck.
    """

    features: int
    kernel_size: int
    plain: bool = False
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """(B, height, width, C) -> (B, height, width, features)."""
        x = Conv(
            self.features,
            self.kernel_size,
            padding=self.kernel_size // 2,
            use_bias=self.plain,
            conv_init=_XAVIER if self.plain else FAN_OUT_CONV,
            dtype=self.dtype,
            name="conv",
        )(x)
        return x if self.plain else nn.relu(BatchNorm(dtype=self.dtype, name="bn")(x, train))


class Head(nn.Module):
    """Base of the heads: what they end with.

    Attributes:
        num_classes: channels of the logits.
        channels: width of the head.
        dropout: share of the channels that are dropped before the classifier in training (PyTorch's Dropout2d).
        dtype: of the computation; logits are float32 or more.
    """

    num_classes: int
    channels: int
    dropout: float = 0.1
    dtype: jnp.dtype | None = None

    @nn.nowrap
    def block(self, x: jax.Array, train: bool, name: str, kernel_size: int = 3) -> jax.Array:
        return ConvModule(self.channels, kernel_size, dtype=self.dtype, name=name)(x, train)

    @nn.nowrap
    def classify(self, x: jax.Array, train: bool) -> jax.Array:
        x = nn.Dropout(self.dropout, broadcast_dims=(1, 2), deterministic=not train)(x)
        logits = Conv(self.num_classes, 1, conv_init=_SMALL, dtype=self.dtype, name="conv_seg")(x)
        return logits.astype(jnp.promote_types(logits.dtype, jnp.float32))


class UPerHead(Head):
    """UPerNet's: pyramid pooling of the last map, then a feature pyramid, whose levels are joined at the first.

    Attributes: those of `Head`, and
        pool_scales: sides of the pooled maps.
    """

    channels: int = 512
    pool_scales: tuple[int, ...] = (1, 2, 3, 6)

    @nn.compact
    def __call__(self, maps: Sequence[jax.Array], train: bool) -> jax.Array:
        """maps: (B, height, width, C) each, the finest first -> logits (B, height, width, num_classes) of the first."""
        maps, top = list(maps[:-1]), maps[-1]
        pooled = [
            self.block(adaptive_pool(top, (side, side)), train, f"psp_modules_{i}_1", kernel_size=1)
            for i, side in enumerate(self.pool_scales)
        ]
        joined = jnp.concatenate([top, *(bilinear(x, top.shape[1:3]) for x in pooled)], axis=-1)
        levels = [self.block(x, train, f"lateral_convs_{i}", kernel_size=1) for i, x in enumerate(maps)]
        levels.append(self.block(joined, train, "bottleneck"))
        for i in range(len(maps) - 1, -1, -1):
            levels[i] = levels[i] + bilinear(levels[i + 1], levels[i].shape[1:3])
        fused = [self.block(x, train, f"fpn_convs_{i}") for i, x in enumerate(levels[:-1])] + levels[-1:]
        fused = jnp.concatenate([bilinear(x, fused[0].shape[1:3]) for x in fused], axis=-1)
        return self.classify(self.block(fused, train, "fpn_bottleneck"), train)


class FCNHead(Head):
    """One block and the classifier, on one map: UPerNet's auxiliary head."""

    channels: int = 256

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """(B, height, width, C) -> logits (B, height, width, num_classes)."""
        return self.classify(self.block(x, train, "convs_0"), train)


class FPN(nn.Module):
    """The neck of Semantic FPN: every map in one width, each with what the coarser ones say added.

    Attributes:
        features: that width.
    """

    features: int = 256
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, maps: Sequence[jax.Array]) -> list[jax.Array]:
        """maps: (B, height, width, C) each, the finest first -> as many (B, height, width, features)."""

        def conv(x: jax.Array, size: int, name: str) -> jax.Array:
            return ConvModule(self.features, size, plain=True, dtype=self.dtype, name=name)(x, False)

        levels = [conv(x, 1, f"lateral_convs_{i}") for i, x in enumerate(maps)]
        for i in range(len(levels) - 2, -1, -1):
            levels[i] = levels[i] + nearest(levels[i + 1], levels[i].shape[1:3])
        return [conv(x, 3, f"fpn_convs_{i}") for i, x in enumerate(levels)]


class FPNHead(Head):
    """Semantic FPN's: each level is brought to the first by steps of a block and doubled sides, and they are added.

    Attributes: those of `Head`, and
        strides: of the maps.
    """

    channels: int = 128
    strides: tuple[int, ...] = (4, 8, 16, 32)

    @nn.compact
    def __call__(self, maps: Sequence[jax.Array], train: bool) -> jax.Array:
        """maps: (B, height, width, C) each, the finest first -> logits (B, height, width, num_classes) of the first."""
        total = None
        for i, (x, stride) in enumerate(zip(maps, self.strides, strict=True)):
            doublings = int(math.log2(stride / self.strides[0]))
            for j in range(max(1, doublings)):
                x = self.block(x, train, f"scale_heads_{i}_{2 * j}")
                if doublings:
                    x = bilinear(x, (2 * x.shape[1], 2 * x.shape[2]))
            total = x if total is None else total + bilinear(x, total.shape[1:3])
        return self.classify(total, train)
