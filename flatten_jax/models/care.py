"""CARE: convolutions and linear attention in separate channels, mixed by convolutional MLPs, with two heads."""

from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from flatten_jax.attention import Site
from flatten_jax.attention.contract import on_grid
from flatten_jax.models.blocks import Scope, dropped_path, scaled
from flatten_jax.models.published import Published
from flatten_jax.models.staged import Staged
from flatten_jax.ops.batch_norm import BatchNorm
from flatten_jax.ops.convolution import Conv
from flatten_jax.ops.dense import Dense
from flatten_jax.ops.depthwise import DepthwiseConv
from flatten_jax.ops.gelu import gelu
from flatten_jax.ops.initializers import NORMAL, ConvInit
from flatten_jax.ops.norm import LayerNorm


class CARE(Staged):
    """CARE-Transformer (Zhou et al., CVPR 2025, arXiv 2411.16170).

    Any image_size from 32 up; what is left over at the lower and right edge is not looked at. Logits are the mean of
    two heads, `head` and `dist_head`, in training too, unless there is a teacher (`distill.tasks`), for whose answers
    the second is.

    Attributes: those of `Backbone`, and
        attn_type: a token mixer for each stage: `care`, or an attention in the place of all of it.
        embed_dims, depths, ratios: the architecture, one entry per stage; ratios are those of a block's two MLPs.
        num_heads: of other attentions than `care`, whose heads have a width of their own.
    """

    hallmark: ClassVar[str] = "dist_head.fc.weight"
    level_name: ClassVar[str] = "stages.{0}"
    conv_init: ClassVar[ConvInit] = NORMAL
    heads: ClassVar[tuple[tuple[str, ...], ...]] = (("head",), ("dist_head",))

    attn_type: str = "care"
    embed_dims: tuple[int, ...] = (32, 64, 128, 256)
    depths: tuple[int, ...] = (2, 4, 8, 4)
    ratios: tuple[tuple[float, float], ...] = ((2, 2), (2, 4), (4, 4), (4, 4))
    num_heads: tuple[int, ...] = (1, 2, 4, 8)

    @property
    def answer_head(self) -> bool:
        return True

    def level_info(self) -> list[dict[str, Any]]:
        *info, last = super().level_info()
        return [*info, {**last, "num_chs": int(self.embed_dims[-1] * self.ratios[-1][1])}]

    def levels(self, images: jax.Array, train: bool, count: int) -> list[jax.Array]:
        if min(self.image_size) < self.stride:
            raise ValueError(
                f"image_size={self.image_size} has a side below {self.stride}, the stride: use larger images"
            )
        conv = partial(Conv, conv_init=NORMAL, dtype=self.dtype)
        norm = partial(BatchNorm, dtype=self.dtype)
        x, levels = norm(name="stem_1")(conv(self.embed_dims[0], 4, 4, name="stem_0")(images), train), []
        for i in range(count):

            def own(j: int, i: int = i) -> dict[str, Any]:
                return dict(last=(i, j) == (len(self.depths) - 1, self.depths[-1] - 1))

            def stage(x: jax.Array, i: int = i, own: Any = own) -> jax.Array:
                if i:
                    x = conv(self.embed_dims[i], 2, 2, name="downsample_1")(norm(name="downsample_0")(x, train))
                site, kind = Site(x.shape[1:3], train=train), dict(block=_Block, ratios=self.ratios[i], epsilon=1e-5)
                return self.stage(x, site, i, "blocks_", own=own, **kind)[-1]

            x = Scope(stage, name=f"stages_{i}")(x)
            levels.append(x)
        return levels

    def final_norm(self, x: jax.Array) -> jax.Array:
        """None: both heads have one of their own."""
        return x

    def classify(self, x: jax.Array, train: bool) -> tuple[jax.Array, ...]:
        def head(x: jax.Array) -> jax.Array:
            x = LayerNorm(epsilon=self.epsilon, dtype=self.dtype, name="norm")(gelu(x))
            return Dense(self.num_classes, dtype=self.dtype, name="fc")(x)

        return Scope(head, name="head")(x), Scope(head, name="dist_head")(x)


class _Block(nn.Module):
    """x + gamma y, y the tokens mixed, then the three groups beside the memory mixed by an MLP, then all by another.

    Attributes:
        attention: makes the token mixer's host, which is called with (x, site).
        ratios: hidden widths of the two MLPs over the channels they mix.
        last: give the second MLP's hidden values instead, which are classified.
        epsilon: of the BatchNorms.
    """

    attention: Callable[..., nn.Module]
    ratios: tuple[float, float]
    last: bool = False
    epsilon: float = 1e-5
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, x: jax.Array, site: Site, rate: float | jax.Array = 0.0) -> tuple[jax.Array, jax.Array]:
        """x: (B, N, C), rate: of `drop_path` -> (x, what its token mixer gave), both (B, N, C)."""
        attended = self.attention(name="token_mixer")(x, site)
        memory = x.shape[2] - 3 * (x.shape[2] // 4)

        def mix(y: jax.Array) -> jax.Array:
            kept, groups = jnp.split(y, [memory], axis=-1)
            groups = groups + self._mlp(groups, site, "inter1", self.ratios[0])
            y = jnp.concatenate([kept, groups], axis=-1)
            mixed = self._mlp(y, site, "inter2", self.ratios[1], hidden_only=self.last)
            return mixed if self.last else y + mixed

        y = Scope(mix, name="inter_layer")(on_grid(attended, site))
        y = y.reshape(*x.shape[:2], -1)
        if self.last:
            return y, attended
        return x + dropped_path(self, scaled(self, "gamma", y, 1e-6), rate, site.train), attended

    @nn.nowrap
    def _mlp(self, x: jax.Array, site: Site, name: str, ratio: float, hidden_only: bool = False) -> jax.Array:
        """A BatchNorm, an MLP with a depthwise convolution after its GELU: (B, height, width, C)."""
        channels, conv = x.shape[-1], partial(Conv, kernel_size=1, conv_init=NORMAL, dtype=self.dtype)
        x = BatchNorm(epsilon=self.epsilon, dtype=self.dtype, name=f"{name}_norm")(x, site.train)
        x = gelu(conv(int(ratio * channels), name=f"{name}_fc1")(x))
        x = DepthwiseConv(x.shape[-1], 3, self.dtype, NORMAL, name=f"{name}_conv")(x)
        return x if hidden_only else conv(channels, name=f"{name}_fc2")(x)


_OPTIONS = nn.FrozenDict(if_att=(False, False, True, True), att_head_dim=(0, 0, 16, 32))
FAMILY = CARE
MODELS = {
    "care_s0": dict(attn_options=_OPTIONS),
    "care_s1": dict(depths=(3, 6, 10, 6), ratios=((2, 4), (2, 4), (4, 4), (4, 4)), attn_options=_OPTIONS),
    "care_s2": dict(
        embed_dims=(32, 64, 192, 384),
        depths=(3, 6, 10, 6),
        ratios=((4, 4),) * 4,
        num_heads=(1, 2, 6, 12),
        attn_options=_OPTIONS,
    ),
}
ALIASES: dict[str, str] = {}
_NOTE = "distilled"
PUBLISHED = {
    "care_s0": Published(78.4, note=_NOTE),
    "care_s1": Published(80.1, note=_NOTE),
    "care_s2": Published(82.1, note=_NOTE),
}
