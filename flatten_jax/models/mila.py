"""MILA (Han et al., NeurIPS 2024), first called MLLA: Mamba's block around linear attention."""

from collections.abc import Callable
from functools import partial
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from flatten_jax.attention import Site
from flatten_jax.attention.contract import Grid, add_on_grid, on_grid
from flatten_jax.hosts.grids import pad_to_windows
from flatten_jax.models.blocks import Mlp, Scope, conv_norm, dropped_path
from flatten_jax.models.published import Published
from flatten_jax.models.staged import Doubling, Layered
from flatten_jax.ops.convolution import Conv
from flatten_jax.ops.cpu import gradient_apart
from flatten_jax.ops.depthwise import DepthwiseConv
from flatten_jax.ops.norm import LayerNorm


class MILA(Layered, Doubling):
    """MILA (arXiv 2405.16605). The official detection code is features_only=True, feature_norm=True.

    Any image_size: images and odd grids are padded with zeros at the right and the bottom, as in that code; the
    official classifier takes square images whose grids are even.

    Attributes: those of `Backbone`, and
        attn_type: an attention for each stage, see `attention.pattern`. Its layers lie beside the norms of the block.
        embed_dim, depths, num_heads, mlp_ratio: the architecture; the width doubles from stage to stage.
    """

    hallmark: ClassVar[str] = "layers.0.blocks.0.cpe1.weight"
    epsilon: ClassVar[float] = 1e-5

    attn_type: str = "mlla"
    embed_dim: int = 64
    depths: tuple[int, ...] = (2, 4, 8, 4)
    num_heads: tuple[int, ...] = (2, 4, 8, 16)
    mlp_ratio: float = 4.0

    def stem(self, images: jax.Array, train: bool) -> jax.Array:
        stem = partial(_stem, train=train, channels=self.embed_dim, dtype=self.dtype)
        return Scope(stem, name="patch_embed")(pad_to_windows(images, (4, 4)))

    @nn.nowrap
    def blocks(self, x: jax.Array, i: int, train: bool) -> jax.Array:
        site = Site(x.shape[1:3], train=train)
        return self.stage(x, site, i, "blocks_", block=_Block, mlp_ratio=self.mlp_ratio)[-1]

    @nn.nowrap
    def downsample(self, x: jax.Array, i: int, train: bool) -> jax.Array:
        reduce = Scope(partial(_downsample, train=train, dtype=self.dtype), name="downsample")
        return reduce(pad_to_windows(x, (2, 2)))

    def torch_buffers(self) -> dict[str, np.ndarray]:
        """Cosines and sines (height, width, C / 2, 2) of rotary positions, in every block of the original attention."""
        buffers, grid = {}, tuple(-(-side // 4) for side in self.image_size)
        for i, (names, width) in enumerate(zip(self.attentions(), self.widths(), strict=True)):
            rotations = _rotations(grid, width)
            mlla = [j for j, name in enumerate(names) if name == "mlla"]
            buffers |= {f"layers.{i}.blocks.{j}.attn.rope.rotations": rotations for j in mlla}
            grid = tuple(-(-side // 2) for side in grid)
        return buffers


def _rotations(grid: Grid, channels: int) -> np.ndarray:
    theta = 1 / 10000 ** (np.arange(channels // 4) / (channels // 4))
    angles = np.concatenate([axis[..., None] * theta for axis in np.indices(grid)], axis=-1)
    return np.stack([np.cos(angles), np.sin(angles)], axis=-1).astype(np.float32)


def _stem(x: jax.Array, train: bool, channels: int, dtype: jnp.dtype | None) -> jax.Array:
    """relu(3 x 3 / 2), two residual 3 x 3, then 3 x 3 / 2 to four times the width and 1 x 1 back; BatchNorm each."""

    def unit(x: jax.Array, name: str, features: int, size: int, stride: int = 1) -> jax.Array:
        conv = partial(conv_norm, features=features, kernel_size=size, stride=stride, use_bias=False, dtype=dtype)
        return Scope(partial(conv, train=train), name=name)(x)

    x = nn.relu(unit(x, "conv1", channels // 2, 3, 2))
    x = x + unit(nn.relu(unit(x, "conv2_0", channels // 2, 3)), "conv2_1", channels // 2, 3)
    return unit(nn.relu(unit(x, "conv3_0", 4 * channels, 3, 2)), "conv3_1", channels, 1)


def _downsample(x: jax.Array, train: bool, dtype: jnp.dtype | None) -> jax.Array:
    """1 x 1 to eight times the width, depthwise 3 x 3 / 2, 1 x 1 to twice the width; the norm is at the end only."""
    features = x.shape[-1]
    wide = partial(Conv, 8 * features, 1, dtype=dtype, name="conv")
    halve = partial(DepthwiseConv, 8 * features, 3, dtype, stride=2, name="conv")  # a grouped Conv is slow on the CPU
    x = nn.relu(Scope(lambda x: wide()(x), name="conv_0")(x))
    x = nn.relu(Scope(lambda x: halve()(x), name="conv_1")(x))
    return Scope(lambda x: conv_norm(x, train, 2 * features, 1, dtype=dtype), name="conv_2")(x)


class _Block(nn.Module):
    """x + cpe1(x), then x + attention(norm1(x)), x + cpe2(x), and x + mlp(norm2(x)); `cpe` are depthwise."""

    attention: Callable[..., nn.Module]
    mlp_ratio: float
    epsilon: float
    dtype: jnp.dtype | None

    @nn.compact
    def __call__(self, x: jax.Array, site: Site, rate: float | jax.Array = 0.0) -> tuple[jax.Array, jax.Array]:
        """x: (B, N, C), rate: of `drop_path` -> (x, what its attention gave), both (B, N, C)."""

        def positioned(x: jax.Array, name: str) -> jax.Array:
            return add_on_grid(x, DepthwiseConv(x.shape[-1], 3, self.dtype, name=name)(on_grid(x, site)), site)

        norm = partial(LayerNorm, epsilon=self.epsilon, dtype=self.dtype)
        attention = self.attention()
        nn.share_scope(self, attention)  # MLLA's layers are the block's
        x = positioned(gradient_apart(x), "cpe1")
        attended = attention(norm(name="norm1")(x), site)
        x = positioned(x + dropped_path(self, attended, rate, site.train), "cpe2")
        mlp = Mlp(int(x.shape[-1] * self.mlp_ratio), dtype=self.dtype, name="mlp")
        return x + dropped_path(self, mlp(norm(name="norm2")(x), site), rate, site.train), attended


FAMILY = MILA
MODELS = {
    "mila_t": dict(embed_dim=64, depths=(2, 4, 8, 4), num_heads=(2, 4, 8, 16)),
    "mila_s": dict(embed_dim=64, depths=(3, 6, 21, 6), num_heads=(2, 4, 8, 16)),
    "mila_b": dict(embed_dim=96, depths=(3, 6, 21, 6), num_heads=(3, 6, 12, 24)),
}
# The name of the paper's first version.
ALIASES = {f"mlla_{size}": f"mila_{size}" for size in "tsb"}
PUBLISHED = {"mila_t": Published(83.5), "mila_s": Published(84.4), "mila_b": Published(85.3)}
