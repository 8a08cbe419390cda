"""SReT: every block is applied twice, with the same weights, and a small projection of its own after either."""

import re
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from flatten_jax.attention import Site
from flatten_jax.attention.table import attention_class
from flatten_jax.models.blocks import Mlp, Scope, conv_norm, dropped_path
from flatten_jax.models.published import Published
from flatten_jax.models.stack import rematerialised, run_blocks
from flatten_jax.models.staged import Staged
from flatten_jax.ops.convolution import Conv
from flatten_jax.ops.cpu import gradient_apart
from flatten_jax.ops.dense import Dense
from flatten_jax.ops.initializers import TORCH_CONV, position_embedding
from flatten_jax.ops.norm import LayerNorm


class SReT(Staged):
    """Sliced Recursive Transformer (Shen et al., ECCV 2022, arXiv 2111.05297).

    Where the second application has several groups of tokens, they are permuted before they are cut into groups: by one
    fixed permutation here (see the attention "sret"), at random in the original, in evaluation too.

    Attributes: those of `Backbone`, and
        image_size: (height, width); the groups must divide the tokens of every stage's grid. The original has 224 only.
        attn_type: an attention for each stage.
        embed_dims, num_heads, mlp_ratio: the architecture, one entry per stage.
        depths: blocks of each stage; the original counts every application of one.
        projection_ratio: hidden width over C of the projections.
        groups_again: `num_groups` of "sret" in the second application of the blocks, one entry per stage.
    """

    hallmark: ClassVar[str] = "transformers.0.blocks.0.norm1.weight"
    level_name: ClassVar[str] = "transformers.{0}"
    first_stride: ClassVar[int] = 8
    no_weight_decay: ClassVar[tuple[str, ...]] = ("pos_embed",)
    # 4 r + 2, see `torch_copies`.
    computed: ClassVar[tuple[str, ...]] = (r"transformers\.\d+\.blocks\.((\d*[02468])?[26]|\d*[13579][048])\..*",)

    attn_type: str = "sret"
    embed_dims: tuple[int, ...] = (64, 128, 256)
    depths: tuple[int, ...] = (2, 5, 3)
    num_heads: tuple[int, ...] = (2, 4, 8)
    mlp_ratio: float = 3.6
    projection_ratio: float = 1.0
    groups_again: tuple[int, ...] = (2, 1, 1)

    def idle_options(self) -> set[str]:
        sliced = any("sret" in names for names in self.attentions())
        return super().idle_options() | {"scan"} | (set() if sliced else {"groups_again"})

    def rates(self) -> list[list[float]]:
        """They start from 0 in every stage, and grow by one part in as many as blocks are applied in all."""
        return [[self.drop_path * j / (2 * sum(self.depths)) for j in range(depth)] for depth in self.depths]

    def host(self, i: int, j: int, attention: str, options: dict[str, Any]) -> partial[nn.Module]:
        return partial(super().host(i, j, attention, options), linear_init=TORCH_CONV)

    def levels(self, images: jax.Array, train: bool, count: int) -> list[jax.Array]:
        x = _Stem(self.embed_dims[0], self.dtype, name="patch_embed")(images, train)
        shape = (1, x.shape[3], x.shape[1], x.shape[2])
        x = x + self.param("pos_embed", position_embedding, shape).transpose(0, 2, 3, 1).astype(x.dtype)
        levels = []
        for i in range(count):
            if i:

                def pool(x: jax.Array, i: int = i) -> jax.Array:
                    groups, features = x.shape[3], self.embed_dims[i]
                    return Conv(features, 3, 2, padding=1, groups=groups, dtype=self.dtype, name="conv")(x)

                x = Scope(pool, name=f"pools_{i - 1}")(x)
            x = Scope(partial(self._stage, i=i, train=train), name=f"transformers_{i}")(x)
            levels.append(x)
        return levels

    @nn.nowrap
    def _stage(self, x: jax.Array, i: int, train: bool) -> jax.Array:
        """The blocks of stage i, each twice, on a map (B, height, width, C)."""
        block, attentions = RecursiveBlock, self.attentions()[i]
        if self.remat:
            block = rematerialised(block, self.remat_policy, static_argnums=(4,))
        applications, rates = [], []
        for j, attention in enumerate(attentions):
            options = self.options_of(i, j)
            again = {**options, "num_groups": self.groups_again[i], "shuffled": self.groups_again[i] > 1}
            hosts = [self.host(i, j, attention, own) for own in (options, again)]
            recursive = block(*hosts, self.mlp_ratio, self.epsilon, self.dtype, name=f"blocks_{4 * j}")
            for second in (False, True):
                name = f"blocks_{4 * j + 2 * second + 1}"
                projection = Projection(self.projection_ratio, self.epsilon, self.dtype, name=name)
                applications.append(partial(_apply, recursive, projection, second))
                rates.append(self.rates()[i][j])
        site, tokens = Site(x.shape[1:3], train=train), x.reshape(x.shape[0], -1, x.shape[3])
        carry = any(attention_class(attention).takes_before for attention in attentions)
        return run_blocks(applications, [0] * len(rates), rates, tokens, site, carry=carry)[-1].reshape(x.shape)

    def final_norm(self, x: jax.Array) -> jax.Array:
        return x

    def pool(self, x: jax.Array) -> jax.Array:
        return LayerNorm(epsilon=self.epsilon, dtype=self.dtype, name="norm")(x.mean(axis=(1, 2)))

    def classify(self, x: jax.Array, train: bool) -> jax.Array:
        return Dense(self.num_classes, dtype=self.dtype, initial=TORCH_CONV, name="head")(x)

    def torch_copies(self, entries: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """A block stands in the original's list at both of its applications, 4 r and 4 r + 2."""
        found = {name: re.fullmatch(r"(transformers\.\d+\.blocks\.)(\d+)(\..*)", name) for name in entries}
        firsts = {name: at for name, at in found.items() if at and int(at[2]) % 4 == 0}
        return {f"{at[1]}{int(at[2]) + 2}{at[3]}": entries[name] for name, at in firsts.items()}


def _apply(
    block: nn.Module, projection: nn.Module, second: bool, x: jax.Array, site: Site, rate: float
) -> tuple[jax.Array, jax.Array]:
    x, attended = block(x, site, rate, second)
    return projection(x, site), attended


class RecursiveBlock(nn.Module):
    """Transformer block whose residuals and branches are weighted by a number each, for two applications.

    Attributes:
        attention, again: make the hosts of the first and the second application; both have the same parameters.
        mlp_ratio: hidden width of the MLP over C.
        epsilon: of the LayerNorms.
    """

    attention: Callable[..., nn.Module]
    again: Callable[..., nn.Module]
    mlp_ratio: float
    epsilon: float
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(
        self, x: jax.Array, site: Site, rate: float | jax.Array = 0.0, second: bool = False
    ) -> tuple[jax.Array, jax.Array]:
        """x: (B, N, C), rate: of `drop_path` -> (x, what its attention gave), both (B, N, C)."""
        norm = partial(LayerNorm, self.epsilon, self.dtype)
        dropped = partial(dropped_path, self, rate=rate, train=site.train)
        weighted = [Coefficient(name=f"coefficient{i + 1}") for i in range(4)]
        x = gradient_apart(x)
        attention = self.again if second else self.attention
        attended = attention(name="attn")(norm(name="norm1")(x), site)
        x = weighted[0](x) + weighted[1](dropped(attended))
        mlp = Mlp(int(x.shape[2] * self.mlp_ratio), dtype=self.dtype, linear_init=TORCH_CONV, name="mlp")
        return weighted[2](x) + weighted[3](dropped(mlp(norm(name="norm2")(x), site))), attended


class Projection(nn.Module):
    """An MLP beside a residual, weighted by a number each.

    Attributes:
        ratio: hidden width over C.
        epsilon: of the LayerNorm.
    """

    ratio: float
    epsilon: float
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, x: jax.Array, site: Site) -> jax.Array:
        """(B, N, C) -> (B, N, C)."""
        mlp = Mlp(int(x.shape[2] * self.ratio), dtype=self.dtype, linear_init=TORCH_CONV, name="mlp")
        y = mlp(LayerNorm(self.epsilon, self.dtype, name="norm1")(x), site)
        return Coefficient(name="coefficient1")(x) + Coefficient(name="coefficient2")(y)


class Coefficient(nn.Module):
    """x times a learned number, at first 1; it multiplies, although the original calls it `bias`."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return x * self.param("bias", nn.initializers.ones, (1,)).astype(x.dtype)


class _Stem(nn.Module):
    """Three convolutions of stride 2 with BatchNorm and ReLU."""

    features: int
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """(B, height, width, 3) -> (B, height / 8, width / 8, features), sides rounded up."""
        for i, features in enumerate((self.features // 2, self.features, self.features), start=1):
            names = f"conv{i}", f"bn{i}"
            x = nn.relu(conv_norm(x, train, features, 3, 2, names=names, dtype=self.dtype))
        return x


_SLICED = dict(attn_type="sret", attn_options=nn.FrozenDict(num_groups=(8, 4, 1)))
_SIZES = {
    "t": dict(mlp_ratio=3.6),
    "lt": dict(mlp_ratio=4.0),
    "s": dict(embed_dims=(126, 252, 504), num_heads=(3, 6, 12), mlp_ratio=3.0, projection_ratio=2.0),
}
FAMILY = SReT
MODELS = {
    **{f"sret_{size}": dict(own, **_SLICED) for size, own in _SIZES.items()},
    **{f"sret_{size}_wo_slice": dict(own, attn_type="softmax") for size, own in _SIZES.items()},
}
ALIASES = {
    **{f"SReT_{size.upper()}": f"sret_{size}" for size in _SIZES},
    **{f"SReT_{size.upper()}_wo_slice": f"sret_{size}_wo_slice" for size in _SIZES},
}
PUBLISHED = {
    "sret_t": Published(76.0),
    "sret_lt": Published(76.7),
    "sret_s": Published(81.9),
    "sret_t_wo_slice": Published(76.1),
    "sret_lt_wo_slice": Published(76.8),
    "sret_s_wo_slice": Published(82.0),
}
