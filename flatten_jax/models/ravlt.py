"""RAVLT (Fan et al., CVPR 2025) and MAViT (Fan et al., ICCV 2025): one body, RALA or MALA in its first two stages."""

from collections.abc import Callable
from functools import partial
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from flatten_jax.attention import Site
from flatten_jax.attention.contract import add_on_grid, on_grid
from flatten_jax.models.blocks import Scope, conv_norm, dropped_path
from flatten_jax.models.published import Published
from flatten_jax.models.staged import Layered
from flatten_jax.ops.convolution import Conv
from flatten_jax.ops.cpu import gradient_apart
from flatten_jax.ops.depthwise import DepthwiseConv
from flatten_jax.ops.gelu import gelu
from flatten_jax.ops.initializers import NORMAL, ConvInit
from flatten_jax.ops.norm import LayerNorm


class RAVLT(Layered):
    """RAVLT (arXiv 2411.07635); MAViT (arXiv 2507.00698) is the same with "mala" for "rala" and a wider projection.

    Any image_size: a grid is half of what it is made of, rounded up. In the official code a norm follows every map of
    dense prediction: features_only=True, feature_norm=True. Their BatchNorms are frozen there.

    Attributes: those of `Backbone`, and
        attn_type: an attention for each stage, see `attention.pattern`.
        embed_dims, depths, num_heads, mlp_ratio: the architecture.
        projection: channels of the 1 x 1 convolution before pooling.
        layer_scale: initial value of what scales the branches, one per stage.
    """

    hallmark: ClassVar[str] = "layers.0.blocks.0.pos.weight"
    conv_init: ClassVar[ConvInit] = NORMAL

    attn_type: str = "rala,rala,rala_softmax,rala_softmax"
    embed_dims: tuple[int, ...] = (64, 128, 256, 512)
    depths: tuple[int, ...] = (2, 2, 6, 2)
    num_heads: tuple[int, ...] = (1, 2, 4, 8)
    mlp_ratio: float = 3.5
    projection: int = 1024
    layer_scale: tuple[float, ...] = (1.0, 1.0, 1.0, 1.0)

    def stem(self, images: jax.Array, train: bool) -> jax.Array:
        stem = partial(_stem, conv=self._conv(train), channels=self.embed_dims[0])
        return Scope(stem, name="patch_embed")(images)

    @nn.nowrap
    def blocks(self, x: jax.Array, i: int, train: bool) -> jax.Array:
        settings = dict(mlp_ratio=self.mlp_ratio, layer_scale=self.layer_scale[i])
        return self.stage(x, Site(x.shape[1:3], train=train), i, "blocks_", block=_Block, **settings)[-1]

    @nn.nowrap
    def downsample(self, x: jax.Array, i: int, train: bool) -> jax.Array:
        reduce = partial(self._conv(train), features=self.embed_dims[i + 1], stride=2, names=("reduction", "norm"))
        return Scope(reduce, name="downsample")(x)

    def _conv(self, train: bool) -> Callable[..., jax.Array]:
        return partial(conv_norm, train=train, kernel_size=3, conv_init=NORMAL, dtype=self.dtype)

    def final_map(self, x: jax.Array, train: bool) -> jax.Array:
        settings = dict(names=("proj", "norm"), conv_init=NORMAL, dtype=self.dtype)
        return nn.silu(conv_norm(x, train, self.projection, 1, **settings))

    def classify(self, x: jax.Array, train: bool) -> jax.Array:
        head = Conv(self.num_classes, 1, conv_init=NORMAL, dtype=self.dtype, name="head")
        return head(x[:, None, None])[:, 0, 0]

    def map_norm(self, x: jax.Array, i: int) -> jax.Array:
        return _norm(f"extra_norms_{i}", self.epsilon, self.dtype)(x)

    def torch_buffers(self) -> dict[str, np.ndarray]:
        """The angles of rotary positions, of each pair of a half of a head."""
        quarters = [channels // heads // 4 for channels, heads in zip(self.embed_dims, self.num_heads, strict=True)]
        return {
            f"layers.{i}.RoPE.angle": np.repeat(1 / 10000 ** np.linspace(0, 1, quarter), 2).astype(np.float32)
            for i, quarter in enumerate(quarters)
        }


def _stem(images: jax.Array, conv: Callable[..., jax.Array], channels: int) -> jax.Array:
    """Four convolutions, to a fourth of the sides."""
    x = images
    for n, stride in enumerate((2, 1, 1, 2)):
        features = channels if n == 3 else channels // 2
        x = conv(x, features=features, stride=stride, names=(f"proj_{3 * n}", f"proj_{3 * n + 1}"))
        x = x if n == 3 else gelu(x)
    return x


def _norm(name: str, epsilon: float, dtype: jnp.dtype | None) -> Scope:
    """A LayerNorm whose name in the official code is `name.norm`."""
    return Scope(lambda x: LayerNorm(epsilon=epsilon, dtype=dtype, name="norm")(x), name=name)


class _Block(nn.Module):
    """x + pos(x), then x + gamma_1 attn(norm1(x)), then x + gamma_2 ffn(norm2(x)).

    `pos` is a depthwise convolution. The two scales are (1, C, 1, 1), as in the official code, so that they decay.
    """

    attention: Callable[..., nn.Module]
    mlp_ratio: float
    layer_scale: float
    epsilon: float
    dtype: jnp.dtype | None

    @nn.compact
    def __call__(self, x: jax.Array, site: Site, rate: float | jax.Array = 0.0) -> tuple[jax.Array, jax.Array]:
        """x: (B, N, C), rate: of `drop_path` -> (x, what its attention gave), both (B, N, C)."""

        def scaled(x: jax.Array, name: str) -> jax.Array:
            gamma = self.param(name, nn.initializers.constant(self.layer_scale), (1, x.shape[-1], 1, 1))
            return dropped_path(self, x * gamma.reshape(-1).astype(x.dtype), rate, site.train)

        norm = partial(_norm, epsilon=self.epsilon, dtype=self.dtype)
        x = gradient_apart(x)
        pos = DepthwiseConv(x.shape[-1], 3, self.dtype, NORMAL, name="pos")
        x = add_on_grid(x, pos(on_grid(x, site)), site)
        attended = self.attention(name="attn")(norm("norm1")(x), site)
        x = x + scaled(attended, "gamma_1")
        ffn = _FFN(int(x.shape[-1] * self.mlp_ratio), self.dtype, name="ffn")
        return x + scaled(ffn(norm("norm2")(x), site), "gamma_2"), attended


class _FFN(nn.Module):
    """fc2(y + dwconv(y)), y = gelu(fc1(x)); all are convolutions."""

    hidden_dim: int
    dtype: jnp.dtype | None

    @nn.compact
    def __call__(self, x: jax.Array, site: Site) -> jax.Array:
        """(B, N, C) -> (B, N, C)."""
        conv = partial(Conv, kernel_size=1, conv_init=NORMAL, dtype=self.dtype)
        y = gelu(conv(self.hidden_dim, name="fc1")(on_grid(x, site)))
        y = y + DepthwiseConv(self.hidden_dim, 3, self.dtype, NORMAL, name="dwconv")(y)
        return conv(x.shape[-1], name="fc2")(y).reshape(x.shape)


_SIZES = {
    "t": dict(embed_dims=(64, 128, 256, 512), depths=(2, 2, 6, 2), num_heads=(1, 2, 4, 8)),
    "s": dict(embed_dims=(64, 128, 320, 512), depths=(3, 5, 9, 3), num_heads=(1, 2, 5, 8)),
    "b": dict(
        embed_dims=(96, 192, 384, 512),
        depths=(4, 6, 12, 6),
        num_heads=(1, 2, 6, 8),
        layer_scale=(1.0, 1.0, 1e-6, 1e-6),
    ),
    "l": dict(
        embed_dims=(96, 192, 448, 640),
        depths=(4, 7, 19, 8),
        num_heads=(1, 2, 7, 10),
        layer_scale=(1e-6, 1e-6, 1e-6, 1e-6),
    ),
}
FAMILY = RAVLT
MODELS = {
    **{f"ravlt_{size}": dict(own, projection=1024) for size, own in _SIZES.items()},
    **{
        f"mavit_{size}": dict(
            own, attn_type="mala,mala,rala_softmax,rala_softmax", projection=2560 if size == "l" else 2048
        )
        for size, own in _SIZES.items()
    },
}
ALIASES = {f"RAVLT_{size}": f"ravlt_{size.lower()}" for size in "TSBL"}  # of the official code
PUBLISHED = {
    "ravlt_t": Published(82.8, note="secondary"),
    "ravlt_s": Published(84.4),
    "ravlt_b": Published(85.5, note="secondary; 85.4 elsewhere"),
    "ravlt_l": Published(85.8, note="from memory; 86.1 in a secondary source"),
    "mavit_t": Published(82.9, note="secondary"),
    "mavit_s": Published(84.7),
    "mavit_b": Published(85.7, note="secondary"),
    "mavit_l": Published(86.0, note="secondary"),
}
