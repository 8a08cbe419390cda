"""STViT-R (Chang et al., CVPR 2023, arXiv 2303.08685): a few semantic tokens do most of Swin's third stage."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, ClassVar, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from flatten_jax.attention import Site
from flatten_jax.attention.contract import Grid, heads
from flatten_jax.attention.softmax import softmax_attention
from flatten_jax.hosts.grids import Windows, partition, unpartition
from flatten_jax.models.blocks import Block, Mlp, Scope, conv_norm, drop_path_rates, dropped_path, scaled
from flatten_jax.models.published import Published
from flatten_jax.models.stack import rematerialised
from flatten_jax.models.swin import Swin
from flatten_jax.ops.dense import Dense
from flatten_jax.ops.norm import LayerNorm

_CYCLE = 6  # blocks of the third stage that make tokens of the map and put them back
_SIDE = 3  # semantic tokens of a window: 3 x 3


class STViT(Swin):
    """STViT-R on Swin, the form that recovers the map: a cycle of the third stage is one block of Swin and five others.

    The windows of the map are pooled to 3 x 3 semantic tokens each, which see their window and its surroundings, then
    the whole map, each other inside their window's 3 x 3, and all of each other; at last the map attends to them. These
    five are softmax with few queries or keys and cannot be exchanged; `attn_type` says the first block of a cycle.

    The original is made for 224 px. Here the third stage's grid, a 16th of the image, has to be a whole number of
    windows, or smaller than one; the regions around more than two windows a side are spread evenly.

    Attributes: those of `Swin`, and
        depths: of the third stage the number of cycles, of six blocks each.
        softmax_window_size: also side of the windows that are pooled.
    """

    hallmark: ClassVar[str] = "patch_embed.proj.0.c.weight"

    only_with: ClassVar[Mapping[str, bool]] = {}

    attn_type: str = "softmax"
    depths: tuple[int, ...] = (2, 2, 3, 2)

    def rates(self) -> list[list[float]]:
        return drop_path_rates(self.drop_path, [n * _CYCLE if i == 2 else n for i, n in enumerate(self.depths)])

    def stem(self, images: jax.Array, train: bool) -> jax.Array:
        def proj(x: jax.Array) -> jax.Array:
            conv = partial(conv_norm, train=train, kernel_size=3, stride=2, use_bias=False, dtype=self.dtype)
            for name, width in (("proj_0", self.embed_dim // 2), ("proj_2", self.embed_dim)):
                x = Scope(partial(conv, features=width, names=("c", "bn")), name=name)(x)
                x = jax.nn.hard_swish(x)
            return x

        return Scope(proj, name="patch_embed")(images)

    @nn.nowrap
    def blocks(self, x: jax.Array, i: int, train: bool) -> jax.Array:
        if i != 2:
            return super().blocks(x, i, train)
        batch, height, width, channels = x.shape
        site, x = Site((height, width), train=train), x.reshape(batch, -1, channels)
        for cycle, attention in enumerate(self.attentions()[i]):
            x = self._cycle(x, site, cycle, attention)
        return x.reshape(batch, height, width, channels)

    @nn.nowrap
    def _cycle(self, x: jax.Array, site: Site, cycle: int, attention: str) -> jax.Array:
        """(B, N, C) at `site` -> the same, by six blocks."""

        def made(kind: type[nn.Module], of: Any, j: int, **own: bool) -> Callable[..., Any]:
            make = rematerialised(kind, self.remat_policy) if self.remat else kind
            j, settings = cycle * _CYCLE + j, dict(mlp_ratio=self.mlp_ratio, epsilon=self.epsilon, dtype=self.dtype)
            rate = self.rates()[2][j]
            dropping = {"rate": rate} if rate else {}  # which rematerialisation would trace
            return partial(make(of, **settings, **own, name=f"blocks_{j}"), site=site, **dropping)

        x, _ = made(Block, self.host(2, 0, attention, self.options_of(2, cycle)), 0)(x)
        windows = SemanticWindows.of(site.grid, self._windows()[True])
        attend = partial(made, SemanticBlock, self.num_heads[2])
        pooled = windows.pooled(x)
        t = attend(1, residual=False)(pooled, jnp.concatenate([pooled, windows.regions(x)], axis=1))
        t = windows.joined(t)
        t = attend(2)(t, jnp.concatenate([t, x], axis=1))
        t = windows.joined(attend(3)(windows.split(t)))
        t = attend(4)(t)
        return attend(5)(x, t)


class SemanticWindows(NamedTuple):
    """How windows of a grid are pooled to semantic tokens, 3 x 3 of each, and which regions these see.

    Attributes:
        grid, window: (height, width) of the map's tokens, and of a window.
        region: (height, width) of what the tokens of a window see; regions overlap.
    """

    grid: Grid
    window: Grid
    region: Grid

    @classmethod
    def of(cls, grid: Grid, size: int) -> "SemanticWindows":
        window = Windows.of(grid, size).window
        if any(side % part for side, part in zip(grid, window, strict=True)):
            raise ValueError(
                f"a third stage of {grid[0]} x {grid[1]} tokens is no whole number of windows of {size}: choose an "
                f"image_size whose 16th is a multiple of it, {16 * size} px say, or softmax_window_size"
            )
        region = tuple(min(side, part + part // 2) for side, part in zip(grid, window, strict=True))
        return cls(grid, window, region)

    @property
    def semantic(self) -> Grid:
        """The grid of the semantic tokens."""
        return tuple(_SIDE * (side // part) for side, part in zip(self.grid, self.window, strict=True))

    def pooled(self, x: jax.Array) -> jax.Array:
        """(B, N, C) on the map -> (B * windows, 9, C), the largest of each bin; bins overlap, as PyTorch's adaptive."""
        x = partition(x.reshape(x.shape[0], *self.grid, -1), self.window).reshape(-1, *self.window, x.shape[-1])
        rows, columns = ([slice(s * i // _SIDE, -(-s * (i + 1) // _SIDE)) for i in range(_SIDE)] for s in self.window)
        bins = [x[:, row, column].max(axis=(1, 2)) for row in rows for column in columns]
        return jnp.stack(bins, axis=1)

    def regions(self, x: jax.Array) -> jax.Array:
        """(B, N, C) on the map -> (B * windows, tokens of a region, C)."""
        x = x.reshape(x.shape[0], *self.grid, -1)
        starts = []
        for side, part, reach in zip(self.grid, self.window, self.region, strict=True):
            count = side // part
            starts.append([i * (side - reach) // max(1, count - 1) for i in range(count)])
        parts = [x[:, r : r + self.region[0], c : c + self.region[1]] for r in starts[0] for c in starts[1]]
        return jnp.stack(parts, axis=1).reshape(-1, self.region[0] * self.region[1], x.shape[-1])

    def joined(self, t: jax.Array) -> jax.Array:
        """(B * windows, 9, C) -> (B, semantic tokens, C), row-major on their grid."""
        t = unpartition(t, (_SIDE, _SIDE), self.semantic)
        return t.reshape(t.shape[0], -1, t.shape[-1])

    def split(self, t: jax.Array) -> jax.Array:
        """The inverse of `joined`."""
        return partition(t.reshape(t.shape[0], *self.semantic, -1), (_SIDE, _SIDE))


class SemanticBlock(nn.Module):
    """x + g1 attn(norm1(x); norm1(seen)), then x + g2 mlp(norm2(x)), with drop-path and learned scales g1, g2.

    Attributes:
        num_heads: of its softmax attention: `q`, `kv`, `proj`.
        mlp_ratio: hidden width of the MLP over C.
        epsilon: of the LayerNorms.
        residual: whether what attention gives is added to x; if not, it is kept in training always.
    """

    num_heads: int
    mlp_ratio: float = 4.0
    epsilon: float = 1e-5
    dtype: jnp.dtype | None = None
    residual: bool = True

    @nn.compact
    def __call__(self, x: jax.Array, seen: jax.Array | None = None, *, site: Site, rate: float = 0.0) -> jax.Array:
        """Tokens (B, N, C) that attend to (B, M, C), by default themselves -> (B, N, C)."""
        norm = partial(LayerNorm, epsilon=self.epsilon, dtype=self.dtype)
        dropped = partial(dropped_path, self, rate=rate, train=site.train)
        norm1 = norm(name="norm1")
        queries = norm1(x)
        attended = Scope(self._attend, name="attn")(queries, queries if seen is None else norm1(seen))
        attended = scaled(self, "layer_scale_1", attended, 1e-5)
        x = x + dropped(attended) if self.residual else attended
        mlp = Mlp(int(x.shape[-1] * self.mlp_ratio), dtype=self.dtype, name="mlp")
        return x + dropped(scaled(self, "layer_scale_2", mlp(norm(name="norm2")(x), site), 1e-5))

    @nn.nowrap
    def _attend(self, x: jax.Array, seen: jax.Array) -> jax.Array:
        dense = partial(Dense, dtype=self.dtype)
        k, v = jnp.split(dense(2 * x.shape[-1], name="kv")(seen), 2, axis=-1)
        q = dense(x.shape[-1], name="q")(x)
        out = softmax_attention(*(heads(a, self.num_heads) for a in (q, k, v)))
        return dense(x.shape[-1], name="proj")(out.reshape(x.shape))


FAMILY = STViT
MODELS = {
    "stvit_r_swin_t": dict(embed_dim=96, depths=(2, 2, 1, 2), num_heads=(3, 6, 12, 24)),
    "stvit_r_swin_s": dict(embed_dim=96, depths=(2, 2, 3, 2), num_heads=(3, 6, 12, 24)),
    "stvit_r_swin_b": dict(embed_dim=128, depths=(2, 2, 3, 2), num_heads=(4, 8, 16, 32)),
}
ALIASES: dict[str, str] = {}
PUBLISHED = {
    "stvit_r_swin_s": Published(82.7),
    "stvit_r_swin_b": Published(83.2),
}
