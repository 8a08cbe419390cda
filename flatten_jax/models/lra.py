"""Long Range Arena's encoder (Tay et al., ICLR 2021, arXiv 2011.04006): numbers in, one token a pixel or a word."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from flatten_jax.attention import Site
from flatten_jax.attention.table import make_attention
from flatten_jax.models.blocks import behind_token
from flatten_jax.models.isotropic import Isotropic
from flatten_jax.models.published import Published
from flatten_jax.ops.dense import Dense
from flatten_jax.ops.initializers import ConvInit, position_embedding
from flatten_jax.ops.norm import LayerNorm

_ALMOST_ZERO = nn.initializers.normal(1e-6)
XAVIER = ConvInit(nn.initializers.xavier_uniform(), lambda fan_in: _ALMOST_ZERO)
LECUN = ConvInit(nn.initializers.lecun_normal(), lambda fan_in: nn.initializers.zeros)


class TokenEncoder(Isotropic):
    """The arena's transformer encoder: `model.apply(variables, tokens)` with tokens (B, N) of whole numbers.

    Blocks are pre-norm, projections of attentions without a bias, narrower than the tokens, and the classifier is an
    MLP. Where `padded`, token 0 only fills up: attentions are those of the other tokens alone, and attentions which
    cannot leave out tokens are refused. Dropout is where the original has it, but for that of the
    attention's weights, which most attentions do not have.

    Attributes: those of `Isotropic`, and
        image_size: (height, width) of the grid of tokens, N = height * width; of a sequence (1, N).
        patch_size: 1, a token is a pixel.
        qkv_dim: channels inside of the attention.
        vocabulary: how many tokens there are.
        learned_positions: whether positions are learned, or sines.
        class_token: classify by a learned token; otherwise by the mean of the tokens.
        dropout: rate of what is dropped of embeddings, attentions and MLPs.
        padded: whether token 0 fills up shorter sequences.
    """

    hallmark: ClassVar[str] = "token_embed"
    tokens: ClassVar[bool] = True
    no_weight_decay: ClassVar[tuple[str, ...]] = ("token_embed", "pos_embed", "cls_token")

    image_size: tuple[int, int] = (32, 32)
    attn_type: str = "softmax"
    patch_size: int = 1
    qkv_dim: int = 64
    mlp_ratio: float = 1.0
    vocabulary: int = 256
    learned_positions: bool = False
    class_token: bool = False
    dropout: float = 0.1
    padded: bool = False

    def idle_options(self) -> set[str]:
        return super().idle_options() | {"patch_size", "drop_path"}

    def host(self, i: int, j: int, attention: str, options: dict[str, Any]) -> partial[nn.Module]:
        return partial(
            NarrowAttention, self.num_heads, self.qkv_dim, attn_type=attention, options=options, dtype=self.dtype
        )

    def rates(self) -> list[list[float]]:
        """Of dropout."""
        return [[self.dropout] * self.depth]

    def check_input(self, tokens: jax.Array) -> None:
        height, width = self.image_size
        if tokens.ndim != 2 or tokens.shape[1] != height * width or not jnp.issubdtype(tokens.dtype, jnp.integer):
            raise ValueError(
                f"{tokens.dtype} {tuple(tokens.shape)} was given: this model takes whole numbers (B, {height * width}) "
                f"below {self.vocabulary}, the tokens of a grid {height} x {width}, and no pictures"
            )

    def levels(self, tokens: jax.Array, train: bool, count: int) -> list[jax.Array]:
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout={self.dropout} must be in [0, 1)")
        if self.padded and not self.class_token:
            raise ValueError("padded=True needs class_token=True: a mean would count what only fills up")
        embed = self.param("token_embed", nn.initializers.normal(1.0), (self.vocabulary, self.embed_dim))
        x = jnp.take(embed, tokens, axis=0)
        mask = tokens > 0 if self.padded else None
        if self.class_token:
            x = behind_token(self, x)
            mask = mask if mask is None else jnp.pad(mask, ((0, 0), (1, 0)), constant_values=True)
        if self.learned_positions:
            positions = self.param("pos_embed", position_embedding, (1, *x.shape[1:]))
        else:
            positions = jnp.asarray(sines(*x.shape[1:]))
        x = (x + positions).astype(self.dtype or x.dtype)
        site = Site(self.grid(), prefix=self.prefix, train=train, mask=mask)
        x = dropped(self, x, self.dropout, train)
        return self.stage(
            x, site, 0, "blocks_", block=TokenBlock, count=count, scan=self.loops, mlp_ratio=self.mlp_ratio
        )

    def pool(self, x: jax.Array) -> jax.Array:
        return x[:, 0] if self.class_token else super().pool(x)

    def classify(self, x: jax.Array, train: bool) -> jax.Array:
        hidden = int(self.embed_dim * self.mlp_ratio)
        x = jax.nn.relu(Dense(hidden, dtype=self.dtype, initial=LECUN, name="head_mlp")(x))
        return Dense(self.num_classes, dtype=self.dtype, initial=LECUN, name="head")(x)


class NarrowAttention(nn.Module):
    """All tokens together, in fewer channels than they have, by projections without a bias.

    An attention that makes its layers itself is given the tokens in so many channels; one that takes what the attention
    before it gave, which is as wide as the tokens, is given those as they are.

    Attributes:
        num_heads: h, a divisor of `qkv_dim`.
        qkv_dim: channels inside.
        attn_type, options, dtype: as in `QKVAttention`.
    """

    num_heads: int
    qkv_dim: int
    attn_type: str = "softmax"
    options: Mapping[str, Any] = nn.FrozenDict()
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, x: jax.Array, site: Site) -> jax.Array:
        """(B, N, C) -> (B, N, C)."""
        attention = make_attention(self.attn_type, self.num_heads, self.dtype, self.options)
        nn.share_scope(self, attention)
        if attention.takes_before:
            return attention(x, site)
        attention.check(jax.ShapeDtypeStruct((*x.shape[:2], self.qkv_dim), x.dtype), site)
        dense = partial(Dense, use_bias=False, dtype=self.dtype)
        letters = attention.streams
        if letters:
            widths = [attention.widths(self.qkv_dim)[letter] for letter in letters]
            streams = dense(sum(widths), initial=_xavier_of_each(len(letters)), name=letters)(x)
            out = attention(x, site, *jnp.split(streams, np.cumsum(widths[:-1]), axis=-1))
        else:
            out = attention(dense(self.qkv_dim, initial=XAVIER, name="narrow")(x), site)
        return dense(x.shape[-1], initial=XAVIER, name="proj" if letters else "widen")(out)


def _xavier_of_each(count: int) -> ConvInit:
    """Initial values of layers of equal width side by side, each as `XAVIER` alone."""

    def kernel(key: jax.Array, shape: tuple[int, int], dtype: jnp.dtype = jnp.float32) -> jax.Array:
        limit = (6 / (shape[0] + shape[1] / count)) ** 0.5
        return jax.random.uniform(key, shape, dtype, -limit, limit)

    return ConvInit(kernel, XAVIER.bias)


class TokenBlock(nn.Module):
    """Pre-norm block with dropout: x + attn(norm1(x)), then x + fc2(gelu(fc1(norm2(x)))), the GELU by tanh.

    Attributes: as in `blocks.Block`.
    """

    attention: Callable[..., nn.Module]
    mlp_ratio: float = 1.0
    epsilon: float = 1e-6
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, x: jax.Array, site: Site, rate: float | jax.Array = 0.0) -> tuple[jax.Array, jax.Array]:
        """x: (B, N, C), rate: of dropout -> (x, what its attention gave), both (B, N, C)."""
        norm = partial(LayerNorm, epsilon=self.epsilon, dtype=self.dtype)
        dense = partial(Dense, dtype=self.dtype, initial=XAVIER)
        drop = partial(dropped, self, rate=rate, train=site.train)
        attended = self.attention(name="attn")(norm(name="norm1")(x), site)
        x = x + drop(attended)
        hidden = dense(int(x.shape[-1] * self.mlp_ratio), name="fc1")(norm(name="norm2")(x))
        return x + drop(dense(x.shape[-1], name="fc2")(drop(jax.nn.gelu(hidden)))), attended


def dropped(module: nn.Module, x: jax.Array, rate: float | jax.Array, train: bool) -> jax.Array:
    """Dropout in training: each element is 0 with probability `rate`, the others are scaled up."""
    if not train or (isinstance(rate, float) and rate == 0):
        return x
    kept = jax.random.bernoulli(module.make_rng("dropout"), 1 - rate, x.shape)
    return jnp.where(kept, x / jnp.asarray(1 - rate, x.dtype), 0)


def sines(length: int, channels: int) -> np.ndarray:
    """Positions (length, channels) of Vaswani et al.: sines in the even channels, cosines in the odd ones."""
    angles = np.arange(length)[:, None] * 10_000.0 ** (-np.arange(0, channels, 2) / channels)
    return np.stack([np.sin(angles), np.cos(angles)], axis=-1).reshape(length, -1)[:, :channels].astype(np.float32)


# The shapes of the official configs. Performer has those of the transformer, with 8 heads in Pathfinder.
_IMAGE = dict(embed_dim=128, qkv_dim=64, depth=1, num_heads=8, learned_positions=True, class_token=True, dropout=0.3)
_PATHFINDER = dict(num_classes=2, dropout=0.2)
FAMILY = TokenEncoder
MODELS = {
    "lra_image": dict(_IMAGE, num_classes=10),
    "lra_pathfinder": dict(_PATHFINDER, embed_dim=32, qkv_dim=16, depth=4, num_heads=4),
    "lra_pathfinder_linear": dict(_PATHFINDER, embed_dim=128, qkv_dim=64, depth=1, num_heads=2, attn_type="linear"),
    "lra_listops": dict(
        image_size=(1, 2000),
        vocabulary=16,
        num_classes=10,
        embed_dim=512,
        qkv_dim=512,
        depth=4,
        mlp_ratio=2.0,
        num_heads=8,
        class_token=True,
        padded=True,
    ),
}
ALIASES: dict[str, str] = {}
PUBLISHED: dict[str, Published] = {}
