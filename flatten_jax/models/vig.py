"""ViG, plain: blocks of gated linear attention in both directions and a gated MLP, root-mean-square norms."""

from collections.abc import Callable
from functools import partial
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from flatten_jax.attention import Site
from flatten_jax.attention.contract import Grid
from flatten_jax.models.blocks import dropped_path
from flatten_jax.models.isotropic import Isotropic
from flatten_jax.models.published import Published
from flatten_jax.ops.convolution import Conv
from flatten_jax.ops.dense import Dense
from flatten_jax.ops.initializers import position_embedding
from flatten_jax.ops.norm import LayerNorm
from flatten_jax.ops.rms_norm import RMSNorm

_SMALLEST = 7  # side of an image on which the first convolution, 9 x 9 with one zero around, has a place


class ViG(Isotropic):
    """ViG (Liao et al., AAAI 2025, arXiv 2405.18425) without stages: gated linear attention on 14 x 14 tokens.

    x + attn(RMS(x)), then x + mlp(RMS(x)), with `gla` as attention. There is no class token. Any image_size: what is
    left at the lower and right edge the two convolutions of the stem do not see. `pos_embed` is made for the image, and
    resampled (bicubic) when weights of another size are loaded, which is what the original does at each call.

    In evaluation the original halves the sum of the two directions once more than in training; the norm that follows
    hides it up to its epsilon. `half_in_eval` of the models here does the same.

    Attributes: those of `Isotropic`, of which
        mlp_ratio: hidden width of the MLP over C, which is then rounded up to a multiple of 256.
    """

    hallmark: ClassVar[str] = "blocks.0.attn_norm.weight"
    no_weight_decay: ClassVar[tuple[str, ...]] = ("pos_embed",)

    attn_type: str = "gla"
    mlp_ratio: float = 8 / 3

    def grid(self) -> Grid:
        if min(self.image_size) < _SMALLEST:
            raise ValueError(f"image_size={self.image_size} is too small for this stem: give it {_SMALLEST} or more")
        height, width = (((side - 7) // 8) // 2 + 1 for side in self.image_size)
        return height, width

    def levels(self, images: jax.Array, train: bool, count: int) -> list[jax.Array]:
        grid = self.grid()
        x = _Stem(self.embed_dim, self.dtype, name="patch_embed")(images).reshape(len(images), -1, self.embed_dim)
        x = x + self.param("pos_embed", position_embedding, (1, x.shape[1], self.embed_dim)).astype(x.dtype)
        hidden = rounded_up(self.mlp_ratio * self.embed_dim, 256)
        site = Site(grid, train=train)
        settings = dict(block=GatedBlock, hidden_dim=hidden)
        return self.stage(x, site, 0, "blocks_", count=count, scan=self.loops, **settings)

    def final_norm(self, x: jax.Array) -> jax.Array:
        return _norm(x, self.epsilon, self.dtype, "norm")


class GatedMlp(nn.Module):
    """down(silu(a) b) with a, b = halves of up(x), without biases (Shazeer, 2020, arXiv 2002.05202).

    Attributes:
        hidden_dim: width of a and of b.
        names: of the two layers.
    """

    hidden_dim: int
    names: tuple[str, str]
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """(B, N, C) -> (B, N, C)."""
        up, down = self.names
        a, b = jnp.split(Dense(2 * self.hidden_dim, use_bias=False, dtype=self.dtype, name=up)(x), 2, axis=-1)
        return Dense(x.shape[-1], use_bias=False, dtype=self.dtype, name=down)(jax.nn.silu(a) * b)


def rounded_up(width: float, multiple: int) -> int:
    """The least multiple that is no smaller than the whole part of `width`."""
    return -(-int(width) // multiple) * multiple


class _Stem(nn.Module):
    """Two convolutions, 9 x 9 of stride 8 and 3 x 3 of stride 2, each with a LayerNorm; a SiLU between."""

    embed_dim: int
    dtype: jnp.dtype | None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        norm = partial(LayerNorm, epsilon=1e-5, dtype=self.dtype)
        x = Conv(self.embed_dim // 2, 9, 8, padding=1, dtype=self.dtype, name="proj_0")(x)
        x = jax.nn.silu(norm(name="proj_1")(x))
        x = Conv(self.embed_dim, 3, 2, padding=1, dtype=self.dtype, name="proj_3")(x)
        return norm(name="proj_4")(x)


class GatedBlock(nn.Module):
    """x + attn(norm(x)), then x + mlp(norm(x)) with a gated MLP, each with drop-path.

    Attributes: those of `blocks.Block`, and
        hidden_dim: width inside the MLP.
    """

    names: ClassVar[tuple[str, str, str]] = ("attn_norm", "attn", "mlp_norm")
    mlp_names: ClassVar[tuple[str, str]] = ("gate_proj", "down_proj")

    attention: Callable[..., nn.Module]
    hidden_dim: int
    epsilon: float
    dtype: jnp.dtype | None

    @nn.compact
    def __call__(self, x: jax.Array, site: Site, rate: float | jax.Array = 0.0) -> tuple[jax.Array, jax.Array]:
        """x: (B, N, C), rate: of `drop_path` -> (x, what its attention gave), both (B, N, C)."""
        dropped = partial(dropped_path, self, rate=rate, train=site.train)
        first, attn, second = self.names
        attended = self.attention(name=attn)(self.norm(x, first), site)
        x = x + dropped(attended)
        mlp = GatedMlp(self.hidden_dim, self.mlp_names, self.dtype, name="mlp")
        return x + dropped(mlp(self.norm(x, second))), attended

    @nn.nowrap
    def norm(self, x: jax.Array, name: str) -> jax.Array:
        return _norm(x, self.epsilon, self.dtype, name)


def _norm(x: jax.Array, epsilon: float, dtype: jnp.dtype | None, name: str) -> jax.Array:
    return RMSNorm(epsilon, name=name)(x).astype(dtype or x.dtype)


_OPTIONS = dict(half_in_eval=True, xavier_init="all")
_IN_T = dict(_OPTIONS, use_act_in_conv=True, use_out_act=True)
FAMILY = ViG
MODELS = {
    "vig_t": dict(embed_dim=192, num_heads=3, attn_options=nn.FrozenDict(_IN_T)),
    "vig_s": dict(embed_dim=384, num_heads=6, attn_options=nn.FrozenDict(_OPTIONS)),
    "vig_b": dict(embed_dim=768, num_heads=12, attn_options=nn.FrozenDict(_OPTIONS)),
}
ALIASES: dict[str, str] = {}
PUBLISHED = {"vig_t": Published(77.2), "vig_s": Published(81.7), "vig_b": Published(82.6)}
