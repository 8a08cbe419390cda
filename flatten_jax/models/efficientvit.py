"""EfficientViT-B: mobile convolutions, and in two stages multi-scale linear attention between them."""

from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from flatten_jax.attention import Site, pattern
from flatten_jax.attention.contract import on_grid
from flatten_jax.hosts import QKVAttention
from flatten_jax.models.backbone import Backbone
from flatten_jax.models.blocks import Scope, dropped_path
from flatten_jax.models.published import Published
from flatten_jax.models.stack import rematerialised
from flatten_jax.ops.batch_norm import BatchNorm
from flatten_jax.ops.convolution import Conv
from flatten_jax.ops.dense import Dense
from flatten_jax.ops.depthwise import DepthwiseConv
from flatten_jax.ops.initializers import TORCH_CONV
from flatten_jax.ops.norm import LayerNorm


class EfficientViT(Backbone):
    """EfficientViT-B (Cai et al., ICCV 2023, arXiv 2205.14756).

    Any image_size; sides are halved and rounded up five times. There are five levels, the first after the stem; maps
    have no norms in the original. Features are pooled after the head's first convolution, which num_classes=0 keeps.

    Attributes: those of `Backbone`, and
        attn_type: an attention for each of the last two stages.
        embed_dims: widths of the stem and of the four stages.
        stem_depth, depths: numbers of blocks; those of the last two stages are without the one that halves the grid.
        head_dim: width of the attentions' heads.
        head_widths: of the features that are pooled, and of the layer between them and the logits.
        drop_path: rate of the last residual branch of all; it grows linearly over them from the first, which has a
            share too. The original raises it in the course of training as well.
    """

    hallmark: ClassVar[str] = "backbone.input_stem.op_list.0.conv.weight"
    epsilon: ClassVar[float] = 1e-5
    heads: ClassVar[tuple[tuple[str, ...], ...]] = (("head", "op_list_3"),)

    attn_type: str = "litemla"
    embed_dims: tuple[int, ...] = (16, 32, 64, 128, 256)
    stem_depth: int = 1
    depths: tuple[int, ...] = (2, 3, 3, 4)
    head_dim: int = 16
    head_widths: tuple[int, int] = (1536, 1600)

    def setup(self) -> None:
        self.head = _Head(self.head_widths, self.num_classes, self.epsilon, self.dtype)

    def level_info(self) -> list[dict[str, Any]]:
        modules = ["backbone.input_stem", *(f"backbone.stages.{i}" for i in range(len(self.depths)))]
        return [
            {"num_chs": channels, "reduction": 2 * 2**i, "module": module}
            for i, (channels, module) in enumerate(zip(self.embed_dims, modules, strict=True))
        ]

    def attentions(self) -> list[tuple[str, ...]]:
        return pattern(self.attn_type, self.depths[2:])

    def host(self, i: int, j: int, attention: str, options: dict[str, Any]) -> partial[nn.Module]:
        num_heads = self.embed_dims[i + 3] // self.head_dim
        return partial(QKVAttention, num_heads, attn_type=attention, options=options, dtype=self.dtype)

    def _branch_rates(self) -> list[float]:
        """Drop-path rates of all residual branches; a block of attention has two."""
        branches = self.stem_depth + sum(depth - 1 for depth in self.depths[:2]) + 2 * sum(self.depths[2:])
        return [self.drop_path * (i + 1) / branches for i in range(branches)]

    def rates(self) -> list[list[float]]:
        rates = self._branch_rates()[-2 * sum(self.depths[2:]) :: 2]
        return [rates[: self.depths[2]], rates[self.depths[2] :]]

    def levels(self, images: jax.Array, train: bool, count: int) -> list[jax.Array]:
        rates = self._branch_rates()
        step, rates = rates[0], iter(rates)
        block = rematerialised(_ConvBlock, self.remat_policy) if self.remat else _ConvBlock
        block = partial(block, epsilon=self.epsilon, dtype=self.dtype)

        def stem(x: jax.Array) -> jax.Array:
            unit = _Unit(self.embed_dims[0], 3, 2, epsilon=self.epsilon, dtype=self.dtype, name="op_list_0")
            x = unit(x, train)
            for j in range(self.stem_depth):
                of_block = block(x.shape[3], expand=0, rate=next(rates), name=f"op_list_{j + 1}")
                x = of_block(x, Site(x.shape[1:3], train=train))
            return x

        def stage(x: jax.Array, i: int) -> jax.Array:
            width, depth = self.embed_dims[i + 1], self.depths[i]
            first = block(width, stride=2, norms=i < 2, shortcut=False, name="op_list_0")
            x = first(x, Site(x.shape[1:3], train=train))
            site = Site(x.shape[1:3], train=train)
            if i >= 2:
                kind = dict(block=_AttentionBlock, first=1, step=step)
                return self.stage(x, site, i - 2, "op_list_", **kind)[-1]
            for j in range(1, depth):
                x = block(width, rate=next(rates), name=f"op_list_{j}")(x, site)
            return x

        def backbone(x: jax.Array) -> list[jax.Array]:
            levels = [Scope(stem, name="input_stem")(x)]
            for i in range(count - 1):
                levels.append(Scope(partial(stage, i=i), name=f"stages_{i}")(levels[-1]))
            return levels

        return Scope(backbone, name="backbone")(images)

    def final_map(self, x: jax.Array, train: bool) -> jax.Array:
        return self.head.widened(x, train)

    def classify(self, x: jax.Array, train: bool) -> jax.Array:
        return self.head(x)


class _Unit(nn.Module):
    """A convolution `conv`, a BatchNorm `norm` and a hard swish; without the norm the convolution has a bias."""

    features: int
    kernel_size: int = 1
    stride: int = 1
    depthwise: bool = False
    normed: bool = True
    activated: bool = True
    epsilon: float = 1e-5
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """x: (B, height, width, C) -> (B, rows, columns, features)."""
        size, settings = self.kernel_size, dict(use_bias=not self.normed, dtype=self.dtype, name="conv")
        if self.depthwise:
            x = DepthwiseConv(self.features, size, stride=self.stride, **settings)(x)
        else:
            x = Conv(self.features, size, self.stride, size // 2, **settings)(x)
        if self.normed:
            x = BatchNorm(epsilon=self.epsilon, dtype=self.dtype, name="norm")(x, train)
        return jax.nn.hard_swish(x) if self.activated else x


class _MBConv(nn.Module):
    """`inverted_conv` 1 x 1 to `expand` times the channels, `depth_conv` 3 x 3, `point_conv` 1 x 1.

    Attributes:
        features, stride: of what it gives.
        expand: 0: without the first of them.
        norms: BatchNorms after all three, else after the last.
    """

    features: int
    stride: int = 1
    expand: int = 4
    norms: bool = True
    epsilon: float = 1e-5
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """x: (B, height, width, C) -> (B, rows, columns, features)."""
        unit = partial(_Unit, epsilon=self.epsilon, dtype=self.dtype)
        if self.expand:
            x = unit(self.expand * x.shape[3], normed=self.norms, name="inverted_conv")(x, train)
        depth = unit(x.shape[3], 3, self.stride, depthwise=True, normed=self.norms, name="depth_conv")
        return unit(self.features, activated=False, name="point_conv")(depth(x, train), train)


class _ConvBlock(nn.Module):
    """An `_MBConv`, `main`, and a shortcut around it unless told otherwise; rate: of drop-path."""

    features: int
    stride: int = 1
    expand: int = 4
    norms: bool = True
    shortcut: bool = True
    rate: float = 0.0
    epsilon: float = 1e-5
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, x: jax.Array, site: Site) -> jax.Array:
        main = _MBConv(self.features, self.stride, self.expand, self.norms, self.epsilon, self.dtype, name="main")
        y = main(x, site.train)
        if not self.shortcut:
            return y
        return x + dropped_path(self, y, self.rate, site.train)


class _AttentionBlock(nn.Module):
    """x + attention(x), then x + an `_MBConv` with one norm; no norm before either.

    Attributes:
        attention: makes the attention's host, which is called with (x, site).
        step: by how much the drop-path rate of the convolutions is above the attention's.
    """

    attention: Callable[..., nn.Module]
    step: float = 0.0
    epsilon: float = 1e-5
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, x: jax.Array, site: Site, rate: float | jax.Array = 0.0) -> tuple[jax.Array, jax.Array]:
        """x: (B, N, C), rate: of `drop_path` -> (x, what its attention gave), both (B, N, C)."""

        def dropped(y: jax.Array, rate: float | jax.Array) -> jax.Array:
            return dropped_path(self, y, rate, site.train)

        def local(x: jax.Array) -> jax.Array:
            main = _MBConv(x.shape[2], norms=False, epsilon=self.epsilon, dtype=self.dtype, name="main")
            return main(on_grid(x, site), site.train).reshape(x.shape)

        attended = Scope(lambda x: self.attention(name="main")(x, site), name="context_module")(x)
        x = x + dropped(attended, rate)
        return x + dropped(Scope(local, name="local_module")(x), rate + self.step), attended


class _Head(nn.Module):
    """`op_list_0`, a unit that widens the map; of the mean over it, a normed layer `op_list_2`; logits `op_list_3`."""

    widths: tuple[int, int]
    num_classes: int
    epsilon: float
    dtype: jnp.dtype | None

    def setup(self) -> None:
        self.op_list_0 = _Unit(self.widths[0], epsilon=self.epsilon, dtype=self.dtype)
        self.op_list_2 = _Linear(self.widths[1], normed=True, epsilon=self.epsilon, dtype=self.dtype)
        self.op_list_3 = _Linear(self.num_classes, normed=False, epsilon=self.epsilon, dtype=self.dtype)

    def widened(self, x: jax.Array, train: bool) -> jax.Array:
        """(B, height, width, C) -> (B, height, width, widths[0])."""
        return self.op_list_0(x, train)

    def __call__(self, x: jax.Array) -> jax.Array:
        """(B, widths[0]) -> (B, num_classes)."""
        return self.op_list_3(jax.nn.hard_swish(self.op_list_2(x)))


class _Linear(nn.Module):
    """A layer `linear`; with a LayerNorm `norm` after it, it has no bias."""

    features: int
    normed: bool
    epsilon: float
    dtype: jnp.dtype | None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = Dense(self.features, use_bias=not self.normed, dtype=self.dtype, initial=TORCH_CONV, name="linear")(x)
        return LayerNorm(epsilon=self.epsilon, dtype=self.dtype, name="norm")(x) if self.normed else x


_WIDE = dict(head_dim=32, head_widths=(2304, 2560))
FAMILY = EfficientViT
MODELS = {
    "efficientvit_b0": dict(embed_dims=(8, 16, 32, 64, 128), depths=(2, 2, 2, 2), head_widths=(1024, 1280)),
    "efficientvit_b1": dict(embed_dims=(16, 32, 64, 128, 256), depths=(2, 3, 3, 4), head_widths=(1536, 1600)),
    "efficientvit_b2": dict(embed_dims=(24, 48, 96, 192, 384), depths=(3, 4, 4, 6), **_WIDE),
    "efficientvit_b3": dict(embed_dims=(32, 64, 128, 256, 512), depths=(4, 6, 6, 9), **_WIDE),
}
ALIASES = {f"efficientvit_cls_b{i}": f"efficientvit_b{i}" for i in range(4)}
PUBLISHED = {
    "efficientvit_b1": Published(79.390),
    "efficientvit_b2": Published(82.100),
    "efficientvit_b3": Published(83.468),
}
