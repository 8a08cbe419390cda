"""L2ViT (Zheng, 2025): windows of softmax attention and global linear attention in turn."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from flatten_jax.attention import Site, takes_bias
from flatten_jax.attention.contract import add_on_grid, on_grid
from flatten_jax.attention.l2vit import LCM
from flatten_jax.hosts import QKVAttention
from flatten_jax.hosts.grids import Windows, pad_to_windows
from flatten_jax.models.blocks import Mlp, Scope, conv_norm, dropped_path
from flatten_jax.models.published import Published
from flatten_jax.models.staged import Staged
from flatten_jax.ops.convolution import Conv
from flatten_jax.ops.cpu import gradient_apart
from flatten_jax.ops.depthwise import DepthwiseConv
from flatten_jax.ops.initializers import NORMAL, ConvInit
from flatten_jax.ops.norm import LayerNorm


class L2ViT(Staged):
    """L2ViT (arXiv 2501.16182). The official detection code is features_only=True, feature_norm=True.

    Attentions with scores look at windows, in blocks with a second depthwise convolution before the MLP; others look at
    the whole grid, in blocks with a local sub-layer there (`LCM`). Any image_size: images, odd grids and windows are
    padded with zeros at the right and the bottom, and what pads a window takes part as keys, as in the official code.

    Attributes: those of `Backbone`, and
        attn_type: an attention for each stage, see `attention.pattern`; "softmax/l2vit" is the two in turn.
        embed_dims, depths, num_heads, mlp_ratio: the architecture.
        window_size: of attentions with scores; never clipped to the grid.
    """

    hallmark: ClassVar[str] = "stages.0.0.cpe.0.proj.weight"
    epsilon: ClassVar[float] = 1e-5
    level_name: ClassVar[str] = "stages.{0}"
    conv_init: ClassVar[ConvInit] = NORMAL

    only_with: ClassVar[Mapping[str, bool]] = {"window_size": True}

    attn_type: str = "softmax/l2vit"
    embed_dims: tuple[int, ...] = (96, 192, 384, 768)
    depths: tuple[int, ...] = (2, 2, 6, 2)
    num_heads: tuple[int, ...] = (3, 6, 12, 24)
    mlp_ratio: float = 4.0
    window_size: int = 7

    def levels(self, images: jax.Array, train: bool, count: int) -> list[jax.Array]:
        if self.window_size < 1:
            raise ValueError(f"window_size={self.window_size} must be 1 or more")
        x, levels = images, []
        for i in range(count):
            embed = partial(self._downsample, i=i) if i else partial(self._stem, train=train)
            x = Scope(embed, name=f"downsample_layers_{i}")(x)
            site = Site(x.shape[1:3], train=train)
            x = self.stage(x, site, i, f"stages_{i}_", block=_Block, mlp_ratio=self.mlp_ratio)[-1]
            levels.append(x)
        return levels

    def host(self, i: int, j: int, attention: str, options: dict[str, Any]) -> partial[nn.Module]:
        made = super().host(i, j, attention, options)
        if not takes_bias(attention):
            return made
        return partial(_WindowAttention, *made.args, **made.keywords, window_size=self.window_size)

    @nn.nowrap
    def _stem(self, images: jax.Array, train: bool) -> jax.Array:
        """Two 3 x 3 / 2 convolutions, BatchNorm each and ReLU between, then a LayerNorm."""
        channels = self.embed_dims[0]

        def convolutions(x: jax.Array) -> jax.Array:
            conv = partial(conv_norm, train=train, kernel_size=3, stride=2, conv_init=NORMAL, dtype=self.dtype)
            x = nn.relu(conv(x, features=channels // 2, names=("proj_0", "proj_1")))
            return conv(x, features=channels, names=("proj_3", "proj_4"))

        x = Scope(convolutions, name="proj")(pad_to_windows(images, (4, 4)))
        return LayerNorm(epsilon=self.epsilon, dtype=self.dtype, name="norm")(x)

    @nn.nowrap
    def _downsample(self, x: jax.Array, i: int) -> jax.Array:
        """A LayerNorm, then patches of 2 x 2."""
        x = LayerNorm(epsilon=self.epsilon, dtype=self.dtype, name="norm")(x)
        conv = Conv(self.embed_dims[i], 2, 2, conv_init=NORMAL, dtype=self.dtype, name="proj")
        return conv(pad_to_windows(x, (2, 2)))


class _WindowAttention(QKVAttention):
    """Attention inside windows that are not shifted, without a bias; what pads the last ones takes part as keys."""

    window_size: int = 7

    @nn.compact
    def __call__(self, x: jax.Array, site: Site) -> jax.Array:
        """(B, N, C) -> (B, N, C)."""
        windows = Windows(site.grid, (self.window_size, self.window_size))
        before = None if site.before is None else windows.split(site.before)
        site = site.replace(grid=windows.window, window=windows.window != site.grid, before=before)
        return windows.join(super().__call__(windows.split(x), site))


class _Block(nn.Module):
    """x + cpe_0(x), x + attn(norm1(x)), then x + cpe_1(x) or x + local_mp(norm3(x)), and x + mlp(norm2(x)).

    `cpe` are depthwise convolutions; the second one where attention is in windows, `local_mp` where it is not.
    """

    attention: Callable[..., nn.Module]
    mlp_ratio: float
    epsilon: float
    dtype: jnp.dtype | None

    @nn.compact
    def __call__(self, x: jax.Array, site: Site, rate: float | jax.Array = 0.0) -> tuple[jax.Array, jax.Array]:
        """x: (B, N, C), rate: of `drop_path` -> (x, what its attention gave), both (B, N, C)."""

        def positioned(x: jax.Array, name: str) -> jax.Array:
            conv = partial(DepthwiseConv, x.shape[-1], 3, self.dtype, NORMAL, name="proj")
            return add_on_grid(x, Scope(lambda x: conv()(x), name=name)(on_grid(x, site)), site)

        def dropped(x: jax.Array) -> jax.Array:
            return dropped_path(self, x, rate, site.train)

        norm = partial(LayerNorm, epsilon=self.epsilon, dtype=self.dtype)
        attention = self.attention(name="attn")
        x = positioned(gradient_apart(x), "cpe_0")
        attended = attention(norm(name="norm1")(x), site)
        x = x + dropped(attended)
        if takes_bias(attention.attn_type):
            x = positioned(x, "cpe_1")
        else:
            local = LCM(dtype=self.dtype, conv_init=NORMAL, name="local_mp")
            x = x + dropped(local(norm(name="norm3")(x), site))
        mlp = Mlp(int(x.shape[-1] * self.mlp_ratio), dtype=self.dtype, name="mlp")
        return x + dropped(mlp(norm(name="norm2")(x), site)), attended


_BASE = dict(embed_dims=(128, 256, 512, 1024), depths=(2, 2, 18, 2), num_heads=(4, 8, 16, 32))
FAMILY = L2ViT
MODELS = {
    "l2vit_t": dict(depths=(2, 2, 6, 2)),
    "l2vit_s": dict(depths=(2, 2, 18, 2)),
    "l2vit_b": _BASE,
    "l2vit_b_384": dict(_BASE, image_size=(384, 384), window_size=12),
}
ALIASES = {f"L2ViT_{size}": f"l2vit_{size[0].lower()}" for size in ("Tiny", "Small", "Base")}  # of the official code
PUBLISHED = {
    "l2vit_t": Published(83.1),
    "l2vit_s": Published(84.1),
    "l2vit_b": Published(84.4),
    "l2vit_b_384": Published(87.0, note="after ImageNet-22k"),
}
