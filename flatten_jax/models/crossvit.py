"""CrossViT (Chen et al., ICCV 2021, arXiv 2103.14899): two patch sizes side by side, whose class tokens cross over."""

import re
from functools import partial
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from flatten_jax.attention import Site, of_stage, pattern
from flatten_jax.attention.contract import Grid, heads
from flatten_jax.attention.softmax import softmax_attention
from flatten_jax.hosts import QKVAttention
from flatten_jax.models.backbone import Backbone
from flatten_jax.models.blocks import PatchEmbed, Scope, behind_token, dropped_path
from flatten_jax.models.published import Published
from flatten_jax.ops.bicubic import bicubic_matrix
from flatten_jax.ops.convolution import Conv
from flatten_jax.ops.dense import Dense
from flatten_jax.ops.gelu import gelu
from flatten_jax.ops.initializers import position_embedding
from flatten_jax.ops.norm import LayerNorm

Pair = tuple[jax.Array, jax.Array]


class CrossViT(Backbone):
    """CrossViT: a fine branch of narrow tokens and a coarse one of wide tokens, each with a class token.

    A group has the blocks of either branch, and then lets the class token of each attend to the patches of the other.
    The branches see the same picture at two sizes, so that patches fit: the fine one at the multiple of its patch that
    is nearest to `image_size`, the coarse one likewise at 14/15 of it. These are 240 and 224 px, and 408 and 384 px, as
    in the original, which takes no others. Logits are the mean of two heads. `forward_features` gives (B, 1 + N, C) of
    either branch; pooled features are the two class tokens side by side.

    Attributes: those of `Backbone`, and
        attn_type: one attention for all blocks, or one for each branch, "linear,softmax"; class tokens cross over by
            softmax. Options that are tuples have an entry for each branch.
        out_indices: branches: 0 is the fine map, 1 the coarse one, whose stride is no whole number.
        patch_sizes, widths, num_heads: of the branches.
        depth: number of groups.
        branch_depths: blocks of a group in either branch.
        mlp_ratio: of the blocks.
        conv_stem: make patches by three convolutions (the original's dagger).
    """

    hallmark: ClassVar[str] = "pos_embed.0"
    no_weight_decay: ClassVar[tuple[str, ...]] = ("pos_embed_0", "pos_embed_1", "cls_token_0", "cls_token_1")
    heads: ClassVar[tuple[tuple[str, ...], ...]] = (("head_0",), ("head_1",))
    class_token: ClassVar[bool] = True

    image_size: tuple[int, int] = (240, 240)
    attn_type: str = "softmax"
    patch_sizes: tuple[int, int] = (12, 16)
    widths: tuple[int, int] = (96, 192)
    num_heads: tuple[int, int] = (3, 3)
    depth: int = 3
    branch_depths: tuple[int, int] = (1, 4)
    mlp_ratio: float = 4.0
    conv_stem: bool = False

    def level_info(self) -> list[dict[str, Any]]:
        strides = [self.image_size[0] / grid[0] for grid in self._grids()]
        module = f"blocks.{self.depth - 1}.blocks"
        return [
            {"num_chs": self.widths[b], "reduction": int(s) if s.is_integer() else s, "module": f"{module}.{b}"}
            for b, s in enumerate(strides)
        ]

    def original(self, name: str) -> str:
        return re.sub(r"^(pos_embed|cls_token)_", r"\1.", name)

    def attentions(self) -> list[tuple[str, ...]]:
        """Of the blocks of each group's fine branch, then of its coarse one, group by group."""
        fine, coarse = self.branch_depths
        of_branch = pattern(self.attn_type, [self.depth * fine, self.depth * coarse])
        return [of_branch[b][g * n : (g + 1) * n] for g in range(self.depth) for b, n in ((0, fine), (1, coarse))]

    def host(self, i: int, j: int, attention: str, options: dict[str, Any]) -> partial[nn.Module]:
        return partial(QKVAttention, self.num_heads[i % 2], attn_type=attention, options=options, dtype=self.dtype)

    def options_of(self, i: int, j: int) -> dict[str, Any]:
        return of_stage(self.attn_options, i % 2)

    @property
    def attn_entries(self) -> int:
        return 2

    def rates(self) -> list[list[float]]:
        """They grow over the coarse blocks; a fine block has the rate of the coarse one that is as far in its group."""
        longest, (fine, coarse) = max(self.branch_depths), self.branch_depths
        rates = [self.drop_path * i / max(1, self.depth * longest - 1) for i in range(self.depth * longest)]
        return [rates[g * longest : g * longest + n] for g in range(self.depth) for n in (fine, coarse)]

    def _grids(self) -> tuple[Grid, Grid]:
        """Of the patches of each branch."""
        return tuple(
            tuple(max(1, int(side * share / patch + 0.5)) for side in self.image_size)
            for patch, share in zip(self.patch_sizes, (1, 14 / 15), strict=True)
        )

    def levels(self, images: jax.Array, train: bool, count: int) -> list[Any]:
        grids = self._grids()
        sites = [Site(grid, prefix=1, train=train) for grid in grids]
        x = tuple(self._embedded(images, b, grids[b]) for b in (0, 1))
        for g in range(self.depth):

            def group(x: Pair, g: int = g) -> Pair:
                x = tuple(self._branch(x[b], sites[b], g, b) for b in (0, 1))
                rate = max(self.rates()[2 * g : 2 * g + 2], key=len)[-1]
                crossed = [self._crossed(x, b, train, rate) for b in (0, 1)]
                return tuple(jnp.concatenate([crossed[b], x[b][:, 1:]], axis=1) for b in (0, 1))

            x = Scope(group, name=f"blocks_{g}")(x)
        return [x[b][:, 1:].reshape(x[b].shape[0], *grids[b], -1) for b in (0, 1)] + [x]

    def _embedded(self, images: jax.Array, b: int, grid: Grid) -> jax.Array:
        """The tokens of branch b, class token first, with their positions."""
        patch, width = self.patch_sizes[b], self.widths[b]
        picture = resized(images, (grid[0] * patch, grid[1] * patch))
        if self.conv_stem:
            x = ConvStem(width, patch, dtype=self.dtype, name=f"patch_embed_{b}")(picture)
        else:
            x = PatchEmbed(width, patch, norm=False, dtype=self.dtype, name=f"patch_embed_{b}")(picture)
        x = x.reshape(x.shape[0], -1, width)
        x = behind_token(self, x, f"cls_token_{b}")
        return x + self.param(f"pos_embed_{b}", position_embedding, (1, x.shape[1], width)).astype(x.dtype)

    @nn.nowrap  # the blocks belong to the group
    def _branch(self, x: jax.Array, site: Site, g: int, b: int) -> jax.Array:
        return self.stage(x, site, 2 * g + b, f"blocks_{b}_", mlp_ratio=self.mlp_ratio)[-1]

    @nn.nowrap
    def _crossed(self, x: Pair, b: int, train: bool, rate: float) -> jax.Array:
        """The class token of branch b, (B, 1, C), after it saw the patches of the other branch."""
        own, other = self.widths[b], self.widths[1 - b]
        project = partial(self._projected, x[b][:, :1], f"projs_{b}", other)
        tokens = jnp.concatenate([project(), x[1 - b][:, 1:]], axis=1)
        fusion = ClassAttention(self.num_heads[1 - b], self.epsilon, self.dtype, name=f"fusion_{b}")
        return self._projected(fusion(tokens, train, rate), f"revert_projs_{b}", own)

    @nn.nowrap
    def _projected(self, x: jax.Array, name: str, width: int) -> jax.Array:
        x = LayerNorm(epsilon=self.epsilon, dtype=self.dtype, name=f"{name}_0")(x)
        return Dense(width, dtype=self.dtype, name=f"{name}_2")(gelu(x))

    def final_norm(self, x: Pair) -> Pair:
        return tuple(LayerNorm(epsilon=self.epsilon, dtype=self.dtype, name=f"norm_{b}")(x[b]) for b in (0, 1))

    def pool(self, x: Pair) -> jax.Array:
        return jnp.concatenate([x[0][:, 0], x[1][:, 0]], axis=1)

    def classify(self, x: jax.Array, train: bool) -> jax.Array:
        tokens = jnp.split(x, [self.widths[0]], axis=1)
        logits = [Dense(self.num_classes, dtype=self.dtype, name=f"head_{b}")(tokens[b]) for b in (0, 1)]
        return (logits[0] + logits[1]) / 2


def resized(images: jax.Array, size: Grid) -> jax.Array:
    """(B, height, width, C) -> (B, *size, C), bicubic as in PyTorch; the same array if it is of that size."""
    if images.shape[1:3] == size:
        return images
    rows, columns = (bicubic_matrix(n, m).astype(images.dtype) for n, m in zip(images.shape[1:3], size, strict=True))
    return _resize(images, rows, columns)


@jax.jit
def _resize(images: jax.Array, rows: jax.Array, columns: jax.Array) -> jax.Array:
    return jnp.einsum("ih,jw,bhwc->bijc", rows, columns, images)


class ConvStem(nn.Module):
    """Three convolutions with ReLU between them, of patches of 12 or 16 pixels that overlap."""

    width: int
    patch_size: int
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """x: (B, height, width, 3) -> (B, rows, columns, width)."""
        # (stride, padding) of the second and the third, which are 3 x 3.
        steps = {12: ((3, 0), (1, 1)), 16: ((2, 1), (2, 1))}
        if self.patch_size not in steps:
            raise ValueError(
                f"patch_size={self.patch_size} has no convolutional stem, as 12 and 16 do: conv_stem=False"
            )
        second, third = steps[self.patch_size]
        x = Conv(self.width // 4, 7, 4, 3, dtype=self.dtype, name="proj_0")(x)
        x = Conv(self.width // 2, 3, *second, dtype=self.dtype, name="proj_2")(jax.nn.relu(x))
        return Conv(self.width, 3, *third, dtype=self.dtype, name="proj_4")(jax.nn.relu(x))


class ClassAttention(nn.Module):
    """Softmax attention of the class token alone to all tokens, added to it; there is no MLP."""

    num_heads: int
    epsilon: float
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, x: jax.Array, train: bool, rate: float) -> jax.Array:
        """x: (B, N, C), class token first; rate: of drop-path -> the class token, (B, 1, C)."""

        def attend(y: jax.Array) -> jax.Array:
            def projected(letter: str, of: jax.Array) -> jax.Array:
                return heads(Dense(x.shape[-1], dtype=self.dtype, name=f"w{letter}")(of), self.num_heads)

            out = softmax_attention(projected("q", y[:, :1]), projected("k", y), projected("v", y))
            return Dense(x.shape[-1], dtype=self.dtype, name="proj")(out.reshape(x.shape[0], 1, -1))

        y = LayerNorm(epsilon=self.epsilon, dtype=self.dtype, name="norm1")(x)
        return x[:, :1] + dropped_path(self, Scope(attend, name="attn")(y), rate, train)


def _of(widths: tuple[int, int], num_heads: int, coarse_depth: int, mlp_ratio: float, **more: Any) -> dict[str, Any]:
    return dict(
        widths=widths, num_heads=(num_heads, num_heads), branch_depths=(1, coarse_depth), mlp_ratio=mlp_ratio, **more
    )


_384 = dict(image_size=(408, 408))
_9, _15, _18 = ((128, 256), 4, 3, 3), ((192, 384), 6, 5, 3), ((224, 448), 7, 6, 3)
FAMILY = CrossViT
MODELS = {
    "crossvit_ti": _of((96, 192), 3, 4, 4),
    "crossvit_s": _of((192, 384), 6, 4, 4),
    "crossvit_b": _of((384, 768), 12, 4, 4),
    "crossvit_9": _of(*_9),
    "crossvit_15": _of(*_15),
    "crossvit_18": _of(*_18),
    "crossvit_9_dagger": _of(*_9, conv_stem=True),
    "crossvit_15_dagger": _of(*_15, conv_stem=True),
    "crossvit_18_dagger": _of(*_18, conv_stem=True),
    "crossvit_15_dagger_384": _of(*_15, conv_stem=True, **_384),
    "crossvit_18_dagger_384": _of(*_18, conv_stem=True, **_384),
}
ALIASES = {
    "crossvit_tiny_224": "crossvit_ti",
    "crossvit_small_224": "crossvit_s",
    "crossvit_base_224": "crossvit_b",
    "crossvit_9_224": "crossvit_9",
    "crossvit_15_224": "crossvit_15",
    "crossvit_18_224": "crossvit_18",
    "crossvit_9_dagger_224": "crossvit_9_dagger",
    "crossvit_15_dagger_224": "crossvit_15_dagger",
    "crossvit_18_dagger_224": "crossvit_18_dagger",
}
_NOTE = "the paper's figure, from memory"
PUBLISHED = {
    "crossvit_ti": Published(73.4, note=_NOTE),
    "crossvit_s": Published(81.0, note=_NOTE),
    "crossvit_b": Published(82.2, note=_NOTE),
    "crossvit_9": Published(73.9, note=_NOTE),
    "crossvit_15": Published(81.5, note=_NOTE),
    "crossvit_18": Published(82.5, note=_NOTE),
    "crossvit_9_dagger": Published(77.1, note=_NOTE),
    "crossvit_15_dagger": Published(82.3, note=_NOTE),
    "crossvit_18_dagger": Published(82.8, note=_NOTE),
}
