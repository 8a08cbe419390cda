"""XCiT: blocks of cross-covariance attention and of local patch interaction, then two of class attention."""

from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from flatten_jax.attention import Site
from flatten_jax.attention.contract import Grid, heads
from flatten_jax.attention.l2vit import LCM
from flatten_jax.attention.softmax import softmax_attention
from flatten_jax.models.blocks import Mlp, behind_token, conv_norm, dropped_path, scaled
from flatten_jax.models.isotropic import Isotropic
from flatten_jax.models.published import Published
from flatten_jax.models.pyramid import feature_pyramid
from flatten_jax.ops.convolution import Conv
from flatten_jax.ops.dense import Dense
from flatten_jax.ops.gelu import gelu
from flatten_jax.ops.norm import LayerNorm

FREQUENCIES = 32  # of the position code, for each axis
TEMPERATURE = 10000


class XCiT(Isotropic):
    """XCiT (El-Nouby et al., NeurIPS 2021, arXiv 2106.09681).

    The stem halves the sides, rounding up, until a patch is a token; the tokens get a code of their position, and no
    parameter depends on the image's size. A block adds gamma1 attn(norm1 x), gamma3 local_mp(norm3 x) and gamma2
    mlp(norm2 x) one after the other; the middle one is `LCM` with 3 x 3 kernels, the paper's local patch interaction.
    After the last block a class token comes in and two blocks of class attention gather the picture in it; it is
    classified. `forward_features` gives it first, then the tokens.

    Beyond the original, the stem's convolutions and the code of positions are computed in the precision of the model
    or better, and training gives the logits once (the original's two are equal).

    Attributes: those of `Isotropic`, and
        patch_size: 16 or 8.
        eta: what the layer scales gamma start from.
        norm_tokens: class attention norms all tokens before its MLP, not only the class token (not in nano).
        pyramid: maps of features_only, four of them, are brought to the strides 4, 8, 16 and 32, as for dense
            prediction in the original.
        drop_path: the rate of all blocks alike.
        out_indices: blocks; by default those at 1/3, 1/2, 2/3 and the end, as in the original.
    """

    hallmark: ClassVar[str] = "cls_attn_blocks.0.norm1.weight"
    no_weight_decay: ClassVar[tuple[str, ...]] = ("pos_embed", "cls_token")

    attn_type: str = "xca"
    num_heads: int = 4
    eta: float = 1.0
    norm_tokens: bool = True
    pyramid: bool = False

    def grid(self) -> Grid:
        if self.patch_size not in (8, 16):
            raise ValueError(f"patch_size={self.patch_size} must be 8 or 16: the stem halves the sides 3 or 4 times")
        height, width = (-(-side // self.patch_size) for side in self.image_size)
        return height, width

    def default_indices(self) -> tuple[int, ...]:
        ends = (self.depth / 3, self.depth / 2, 2 * self.depth / 3, self.depth)
        return tuple(sorted({max(1, round(end)) - 1 for end in ends}))

    def rates(self) -> list[list[float]]:
        return [[self.drop_path] * self.depth]

    def idle_options(self) -> set[str]:
        return super().idle_options() | (set() if self.features_only else {"pyramid"})

    @property
    def feature_info(self) -> list[dict[str, Any]]:
        info = super().feature_info
        strides = (4, 8, 16, 32) if self.pyramid else [self.patch_size] * len(info)
        return [{**level, "reduction": stride} for level, stride in zip(info, strides, strict=False)]

    def levels(self, images: jax.Array, train: bool, count: int) -> list[jax.Array]:
        grid, indices = self.grid(), self._indices()
        if self.pyramid and len(indices) != 4:
            raise ValueError(f"pyramid=True needs four maps, and out_indices={indices} are {len(indices)}: name four")
        x = _Stem(self.embed_dim, self.patch_size, self.dtype, name="patch_embed")(images, train)
        x = x + _Positions(self.embed_dim, self.dtype, name="pos_embeder")(grid)
        x = x.reshape(x.shape[0], -1, self.embed_dim)

        settings = dict(block=_Block, mlp_ratio=self.mlp_ratio, eta=self.eta)
        site = Site(grid, train=train)
        levels = self.stage(x, site, 0, "blocks_", count=count, scan=self.loops, **settings)
        if self.features_only and self.pyramid:
            maps = [super(XCiT, self).as_map(levels[i]) for i in indices]
            for i, x in zip(indices, feature_pyramid(maps, self.patch_size, train, self.dtype), strict=True):
                levels[i] = x
        return levels

    def as_map(self, x: jax.Array) -> jax.Array:
        return x if x.ndim == 4 else super().as_map(x)

    def final_norm(self, x: jax.Array) -> jax.Array:
        x = behind_token(self, x)
        for j in range(2):
            x = _ClassBlock(
                self.num_heads,
                self.mlp_ratio,
                self.eta,
                self.norm_tokens,
                self.epsilon,
                self.dtype,
                name=f"cls_attn_blocks_{j}",
            )(x, Site(self.grid(), prefix=1))
        return super().final_norm(x)

    def pool(self, x: jax.Array) -> jax.Array:
        return x[:, 0]


def position_code(grid: Grid) -> np.ndarray:
    """(height, width, 64): sines and cosines of the row, then of the column, the side being a full turn.

    With y = 2 pi i / height for row i = 1, ..., entry m is the sine, for odd m the cosine, of y / 10000^(2 [m/2] / 32).
    """
    m = np.arange(FREQUENCIES)
    frequency = TEMPERATURE ** (2 * (m // 2) / FREQUENCIES)

    def code(side: int) -> np.ndarray:
        angle = 2 * np.pi * np.arange(1, side + 1)[:, None] / (side + 1e-6) / frequency
        return np.where(m % 2, np.cos(angle), np.sin(angle))

    height, width = grid
    rows = np.broadcast_to(code(height)[:, None], (height, width, FREQUENCIES))
    columns = np.broadcast_to(code(width), (height, width, FREQUENCIES))
    return np.concatenate([rows, columns], axis=-1)


class _Stem(nn.Module):
    """3 x 3 convolutions of stride 2 with BatchNorm, GELU between; each is twice as wide as the one before."""

    embed_dim: int
    patch_size: int
    dtype: jnp.dtype | None

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        count = {16: 4, 8: 3}[self.patch_size]
        for i in range(count):
            x = gelu(x) if i else x
            width, names = self.embed_dim // 2 ** (count - 1 - i), (f"proj_{2 * i}_0", f"proj_{2 * i}_1")
            x = conv_norm(x, train, width, 3, 2, names=names, use_bias=False, dtype=self.dtype)
        return x


class _Positions(nn.Module):
    """`position_code` through a 1 x 1 convolution: (1, height, width, C)."""

    embed_dim: int
    dtype: jnp.dtype | None

    @nn.compact
    def __call__(self, grid: Grid) -> jax.Array:
        code = jnp.asarray(position_code(grid)[None])
        return Conv(self.embed_dim, 1, dtype=self.dtype, name="token_projection")(code)


class _Block(nn.Module):
    """Attributes: those of `blocks.Block`, and eta of `XCiT`."""

    attention: Callable[..., nn.Module]
    mlp_ratio: float
    eta: float
    epsilon: float
    dtype: jnp.dtype | None

    @nn.compact
    def __call__(self, x: jax.Array, site: Site, rate: float | jax.Array = 0.0) -> tuple[jax.Array, jax.Array]:
        norm = partial(LayerNorm, epsilon=self.epsilon, dtype=self.dtype)
        mlp = Mlp(int(x.shape[-1] * self.mlp_ratio), dtype=self.dtype, name="mlp")
        local = LCM(3, self.dtype, name="local_mp")

        def dropped(y: jax.Array, gamma: str) -> jax.Array:
            return dropped_path(self, scaled(self, gamma, y, self.eta), rate, site.train)

        attended = self.attention(name="attn")(norm(name="norm1")(x), site)
        x = x + dropped(attended, "gamma1")
        x = x + dropped(local(norm(name="norm3")(x), site), "gamma3")
        return x + dropped(mlp(norm(name="norm2")(x), site), "gamma2"), attended


class _ClassBlock(nn.Module):
    """Class attention as in the original, where every token gets its own normalised value, and counts twice after.

    Attributes: those of `XCiT`.
    """

    num_heads: int
    mlp_ratio: float
    eta: float
    norm_tokens: bool
    epsilon: float
    dtype: jnp.dtype | None

    @nn.compact
    def __call__(self, x: jax.Array, site: Site) -> jax.Array:
        """x: (B, 1 + N, C), the class token first -> the same shape."""
        norm = partial(LayerNorm, epsilon=self.epsilon, dtype=self.dtype)
        u = norm(name="norm1")(x)
        attended = _ClassAttention(self.num_heads, self.dtype, name="attn")(u)
        x = x + scaled(self, "gamma1", jnp.concatenate([attended, u[:, 1:]], axis=1), self.eta)
        token, tokens = x[:, :1], x[:, 1:]
        if self.norm_tokens:
            x = norm(name="norm2")(x)
            token, tokens = x[:, :1], x[:, 1:]
        else:
            token = norm(name="norm2")(token)
        mlp = Mlp(int(x.shape[-1] * self.mlp_ratio), dtype=self.dtype, name="mlp")
        token = token + scaled(self, "gamma2", mlp(token, site), self.eta)
        return jnp.concatenate([token, 2 * tokens], axis=1)


class _ClassAttention(nn.Module):
    """Softmax attention of the class token to all tokens: (B, 1 + N, C) -> (B, 1, C)."""

    num_heads: int
    dtype: jnp.dtype | None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        qkv = Dense(3 * x.shape[-1], dtype=self.dtype, name="qkv")(x)
        q, k, v = (heads(a, self.num_heads) for a in jnp.split(qkv, 3, axis=-1))
        out = softmax_attention(q[:, :1], k, v)
        return Dense(x.shape[-1], dtype=self.dtype, name="proj")(out.reshape(x.shape[0], 1, -1))


_SIZES = {
    "n12": dict(embed_dim=128, depth=12, num_heads=4, eta=1.0, norm_tokens=False),
    "t12": dict(embed_dim=192, depth=12, num_heads=4, eta=1.0),
    "s12": dict(embed_dim=384, depth=12, num_heads=8, eta=1.0),
    "t24": dict(embed_dim=192, depth=24, num_heads=4, eta=1e-5),
    "s24": dict(embed_dim=384, depth=24, num_heads=8, eta=1e-5),
    "m24": dict(embed_dim=512, depth=24, num_heads=8, eta=1e-5),
    "l24": dict(embed_dim=768, depth=24, num_heads=16, eta=1e-5),
}
FAMILY = XCiT
MODELS = {f"xcit_{size}_p{patch}": dict(own, patch_size=patch) for size, own in _SIZES.items() for patch in (16, 8)}
_LONG = {"n": "nano", "t": "tiny", "s": "small", "m": "medium", "l": "large"}
# The original's functions.
ALIASES = {
    f"xcit_{_LONG[size[0]]}_{size[1:]}_p{patch}": f"xcit_{size}_p{patch}" for size in _SIZES for patch in (16, 8)
}
_TOP1 = {  # of the README: by the labels alone, and distilled
    "n12_p16": (69.9, 72.2),
    "t12_p16": (77.1, 78.6),
    "s12_p16": (82.0, 83.3),
    "t24_p16": (79.4, 80.4),
    "s24_p16": (82.6, 83.9),
    "m24_p16": (82.7, 84.3),
    "l24_p16": (82.9, 84.9),
    "n12_p8": (73.8, 76.3),
    "t12_p8": (79.7, 81.2),
    "s12_p8": (83.4, 84.2),
    "t24_p8": (81.9, 82.6),
    "s24_p8": (83.9, 84.9),
    "m24_p8": (83.7, 85.1),
    "l24_p8": (84.4, 85.4),
}
PUBLISHED = {
    f"xcit_{size}": Published(plain, note=f"{distilled} distilled") for size, (plain, distilled) in _TOP1.items()
}
