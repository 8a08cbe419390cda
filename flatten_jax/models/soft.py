"""SOFT and SOFT++: three softmax-free stages of post-norm blocks, and a softmax stage with a class token."""

from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from flatten_jax.attention import Site
from flatten_jax.attention.contract import Grid
from flatten_jax.attention.core import resize, wide
from flatten_jax.hosts import ReducedAttention
from flatten_jax.models.blocks import Block, Scope, behind_token, conv_norm, dropped_path, patch_grid
from flatten_jax.models.published import Published
from flatten_jax.models.staged import Staged
from flatten_jax.ops.dense import Dense
from flatten_jax.ops.initializers import position_embedding
from flatten_jax.ops.norm import LayerNorm


class SOFT(Staged):
    """SOFT (Lu et al., NeurIPS 2021, arXiv 2110.11945); with the attention `softpp`, SOFT++ (IJCV 2024).

    Any image_size whose grids are not smaller than the landmarks' `ratio`. The position embeddings are of
    `position_size`, whatever the image's is, and are interpolated bilinearly to the grid at hand, as in the original.

    Attributes: those of `Backbone`, and
        attn_type: an attention for each stage.
        embed_dims, depths, num_heads, mlp_ratio: the architecture, one entry per stage but for the last of them.
        class_token: add a learned token before the last stage, whose attention has to take it, and classify by it;
            otherwise by the mean of the tokens.
        position_size: (height, width) of the images that the position embeddings are of, multiples of 32.
        drop_path: in all stages but the last it is the rate at which single values of a branch are dropped, as there.
    """

    hallmark: ClassVar[str] = "block1.0.att.norm1.weight"
    no_weight_decay: ClassVar[tuple[str, ...]] = ("cls_token",)

    attn_type: str = "soft,soft,soft,softmax"
    embed_dims: tuple[int, ...] = (64, 128, 320, 512)
    depths: tuple[int, ...] = (1, 2, 3, 2)
    num_heads: tuple[int, ...] = (2, 4, 10, 16)
    mlp_ratio: float = 4.0
    class_token: bool = True
    position_size: tuple[int, int] = (224, 224)

    def levels(self, images: jax.Array, train: bool, count: int) -> list[jax.Array]:
        x, levels, last = images, [], len(self.depths) - 1
        for i in range(count):
            widths, strides = ((32, 32), (2, 1)) if i == 0 else ((), ())
            embed = _ConvEmbed((*widths, self.embed_dims[i]), (*strides, 2), self.dtype, name=f"patch_embed{i + 1}")
            x = embed(x, train)
            site = Site(x.shape[1:3], prefix=int(self.class_token and i == last), train=train)
            x = x.reshape(x.shape[0], -1, x.shape[3])
            if site.prefix:
                x = behind_token(self, x)
            x = x + self._positions(i, x.shape[2], site).astype(x.dtype)
            kind = dict(block=Block) if i == last else dict(block=PostNormBlock, epsilon=1e-5)
            x = self.stage(x, site, i, f"block{i + 1}_", mlp_ratio=self.mlp_ratio, **kind)[-1]
            x = x if i == last else x.reshape(x.shape[0], *site.grid, x.shape[2])
            levels.append(x)
        return levels

    def host(self, i: int, j: int, attention: str, options: dict[str, Any]) -> partial[nn.Module]:
        made = super().host(i, j, attention, options)
        return partial(ReducedAttention, *made.args, **made.keywords) if i == len(self.depths) - 1 else made

    def _positions(self, i: int, channels: int, site: Site) -> jax.Array:
        """The position embedding of stage i at `site`: (1, prefix + height * width, C)."""
        patch_grid(self.position_size, self.stride)  # said once, not stage by stage
        grid: Grid = tuple(side // (4 * 2**i) for side in self.position_size)
        shape = (1, site.prefix + grid[0] * grid[1], channels)
        positions = self.param(f"pos_embed{i + 1}", position_embedding, shape)
        if grid == site.grid:
            return positions
        of_grid = resize(positions[:, site.prefix :].reshape(1, *grid, channels), site.grid)
        return jnp.concatenate([positions[:, : site.prefix], of_grid.reshape(1, -1, channels)], axis=1)

    def pool(self, x: jax.Array) -> jax.Array:
        return x[:, 0] if self.class_token else x.mean(axis=1)

    def as_map(self, x: jax.Array) -> jax.Array:
        if x.ndim == 4:
            return x
        rows, columns = (-(-side // self.stride) for side in self.image_size)
        return x[:, int(self.class_token) :].reshape(x.shape[0], rows, columns, -1)


class PostNormBlock(nn.Module):
    """norm1(x + attn(x)), then norm2(x + ff2(gelu(ff1(x)))) with the tanh form of GELU; all of it is under `att`.

    Attributes: those of `Block`. `drop_path` is dropout here.
    """

    attention: Callable[..., nn.Module]
    mlp_ratio: float = 4.0
    epsilon: float = 1e-5
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, x: jax.Array, site: Site, rate: float | jax.Array = 0.0) -> tuple[jax.Array, jax.Array]:
        """x: (B, N, C), rate: of dropout -> (x, what its attention gave), both (B, N, C)."""
        dense, norm = partial(Dense, dtype=self.dtype), partial(LayerNorm, epsilon=self.epsilon, dtype=self.dtype)

        def dropped(y: jax.Array) -> jax.Array:
            # Every value by itself, as if it were an example.
            return dropped_path(self, y.ravel(), rate, site.train).reshape(y.shape)

        def att(x: jax.Array) -> tuple[jax.Array, jax.Array]:
            attended = self.attention(name="mha")(x, site)
            x = norm(name="norm1")(x + dropped(attended))
            hidden = dense(int(x.shape[-1] * self.mlp_ratio), name="ff1")(x)
            hidden = jax.nn.gelu(wide(hidden), approximate=True).astype(hidden.dtype)
            return norm(name="norm2")(x + dropped(dense(x.shape[-1], name="ff2")(hidden))), attended

        return Scope(att, name="att")(x)


class _ConvEmbed(nn.Module):
    """3 x 3 convolutions, `proj_0`, `proj_3`, ..., each with a BatchNorm, `proj_1`, `proj_4`, ..., and a ReLU."""

    widths: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: jnp.dtype | None

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        for i, (features, stride) in enumerate(zip(self.widths, self.strides, strict=True)):
            names = f"proj_{3 * i}", f"proj_{3 * i + 1}"
            x = jax.nn.relu(conv_norm(x, train, features, 3, stride, names=names, dtype=self.dtype))
        return x


def _settings(width: int, depths: tuple[int, ...]) -> dict[str, Any]:
    """Of a size: the width of the third stage, and the depths."""
    widths = (64, 128, width, 512)
    options = nn.FrozenDict(ratio=(8, 4, 2, 1), conv_size=(9, 5, 3, 3))
    return dict(embed_dims=widths, depths=depths, num_heads=tuple(w // 32 for w in widths), attn_options=options)


_SIZES = {
    "t": _settings(320, (1, 2, 3, 2)),
    "s": _settings(320, (1, 3, 20, 4)),
    "m": _settings(288, (1, 3, 29, 5)),
    "l": _settings(320, (1, 3, 40, 5)),
    "h": _settings(352, (1, 5, 49, 5)),
}
FAMILY = SOFT
MODELS = {
    **{f"soft_{size}": own for size, own in _SIZES.items()},
    **{f"softpp_{size}": dict(own, attn_type="softpp,softpp,softpp,softmax") for size, own in _SIZES.items()},
}
ALIASES = {
    "soft_tiny": "soft_t",
    "soft_small": "soft_s",
    "soft_medium": "soft_m",
    "soft_large": "soft_l",
    "soft_huge": "soft_h",
}
_NOTE = "the original's README says 24M parameters, its code has 39M"
PUBLISHED = {
    "soft_t": Published(79.3),
    "soft_s": Published(82.2, note=_NOTE),
    "soft_m": Published(82.9),
    "soft_l": Published(83.1),
    "soft_h": Published(83.3),
    "softpp_t": Published(79.4),
    "softpp_s": Published(82.4, note=_NOTE),
    "softpp_m": Published(83.1),
    "softpp_l": Published(83.3),
    "softpp_h": Published(83.4),
}
