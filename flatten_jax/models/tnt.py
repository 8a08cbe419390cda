"""TNT (Han et al., NeurIPS 2021, arXiv 2103.00112): a transformer of patches, and in each one of words."""

from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from flatten_jax.attention import Site
from flatten_jax.hosts import SplitAttention
from flatten_jax.models.blocks import Mlp, PatchEmbed, behind_token, dropped_path, patch_grid
from flatten_jax.models.deit import DeiT
from flatten_jax.models.published import Published
from flatten_jax.ops.dense import Dense
from flatten_jax.ops.initializers import position_embedding
from flatten_jax.ops.norm import LayerNorm

_STRIDE = 4  # of the convolution that makes words of a patch


class TNT(DeiT):
    """TNT: a patch is 4 x 4 words, made by a convolution that sees this patch alone; the patches are DeiT's tokens.

    The original is made for one size; here the position encoding of the patches is resampled on loading as DeiT's.

    Attributes: those of `DeiT`, and
        attn_type: of the patches, as in DeiT.
        class_token: classify by a learned token; otherwise by the mean of the patches, which the original does not do.
        inner_attn_type: attention among the words of a patch, with its default options.
        inner_dim, inner_heads: width and heads of the words.
    """

    hallmark: ClassVar[str] = "inner_pos"
    no_weight_decay: ClassVar[tuple[str, ...]] = ("outer_pos", "inner_pos", "cls_token")
    epsilon: ClassVar[float] = 1e-5
    computed: ClassVar[tuple[str, ...]] = ("outer_tokens",)  # zeros that are never read

    attn_type: str = "softmax"
    embed_dim: int = 384
    num_heads: int = 6
    class_token: bool = True
    inner_attn_type: str = "softmax"
    inner_dim: int = 24
    inner_heads: int = 4

    def idle_options(self) -> set[str]:
        return super().idle_options() | {"distilled"}

    def host(self, i: int, j: int, attention: str, options: dict[str, Any]) -> partial[nn.Module]:
        return partial(SplitAttention, self.num_heads, attn_type=attention, options=options, dtype=self.dtype)

    def levels(self, images: jax.Array, train: bool, count: int) -> list[jax.Array]:
        grid = patch_grid(self.image_size, self.patch_size)
        words = self._words(images, grid)
        proj = Dense(self.embed_dim, dtype=self.dtype, name="proj")
        x = patches_of(words, proj, self.epsilon, self.dtype).reshape(images.shape[0], -1, self.embed_dim)
        if self.class_token:
            x = behind_token(self, x)
        x = x + self.param("outer_pos", position_embedding, (1, x.shape[1], self.embed_dim)).astype(x.dtype)
        outputs = self.stage(
            (words, x),
            Site(grid, prefix=self.prefix, train=train),
            0,
            "blocks_",
            block=TNTBlock,
            count=count,
            scan=self.loops,
            inner=partial(SplitAttention, self.inner_heads, attn_type=self.inner_attn_type, dtype=self.dtype),
            mlp_ratio=self.mlp_ratio,
        )
        return [x for _, x in outputs]

    def _words(self, images: jax.Array, grid: tuple[int, int]) -> jax.Array:
        """(B * patches, words, inner_dim), with their positions."""
        patch = self.patch_size
        x = images.reshape(images.shape[0], grid[0], patch, grid[1], patch, 3)
        x = x.transpose(0, 1, 3, 2, 4, 5).reshape(-1, patch, patch, 3)
        embed = PatchEmbed(self.inner_dim, 7, _STRIDE, 3, norm=False, dtype=self.dtype, name="patch_embed")
        words = embed(x).reshape(len(x), -1, self.inner_dim)
        positions = self.param("inner_pos", position_embedding, (1, words.shape[1], self.inner_dim))
        return words + positions.astype(words.dtype)

    def torch_buffers(self) -> dict[str, np.ndarray]:
        rows, columns = patch_grid(self.image_size, self.patch_size)
        return {"outer_tokens": np.zeros((1, rows * columns, self.embed_dim), np.float32)}


def patches_of(words: jax.Array, proj: Dense, epsilon: float, dtype: jnp.dtype | None) -> jax.Array:
    """What the words (B * patches, words, c) say of their patches, (B * patches, 1, C), by layers of the caller."""
    norm = partial(LayerNorm, epsilon=epsilon, dtype=dtype)
    flat = norm(name="proj_norm1")(words.reshape(len(words), 1, -1))
    return norm(name="proj_norm2")(proj(flat))


class TNTBlock(nn.Module):
    """A pre-norm block for the words of every patch, what they say added to the patches, and a block for these.

    Attributes:
        attention: makes the patches' attention, `outer_attn`.
        inner: that of the words, `inner_attn`.
        mlp_ratio: of both MLPs.
        epsilon: of all LayerNorms.
    """

    attention: Callable[..., nn.Module]
    inner: Callable[..., nn.Module]
    mlp_ratio: float = 4.0
    epsilon: float = 1e-5
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(
        self, x: tuple[jax.Array, jax.Array], site: Site, rate: float | jax.Array = 0.0
    ) -> tuple[tuple[jax.Array, jax.Array], jax.Array]:
        """x: words (B * patches, words, c), and tokens (B, N, C) -> (x, what the attention of the tokens gave)."""
        words, tokens = x
        side = round(words.shape[1] ** 0.5)
        words, _ = self._block(words, "inner", self.inner, Site((side, side), train=site.train, window=True), rate)
        proj = Dense(tokens.shape[-1], use_bias=False, dtype=self.dtype, name="proj")
        said = patches_of(words, proj, self.epsilon, self.dtype).reshape(tokens.shape[0], -1, tokens.shape[-1])
        tokens = tokens + jnp.pad(said, ((0, 0), (site.prefix, 0), (0, 0)))
        tokens, attended = self._block(tokens, "outer", self.attention, site, rate)
        return (words, tokens), attended

    def _block(
        self, x: jax.Array, name: str, attention: Callable[..., nn.Module], site: Site, rate: float | jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        norm = partial(LayerNorm, epsilon=self.epsilon, dtype=self.dtype)
        dropped = partial(dropped_path, self, rate=rate, train=site.train)
        attended = attention(name=f"{name}_attn")(norm(name=f"{name}_norm1")(x), site)
        x = x + dropped(attended)
        mlp = Mlp(int(x.shape[-1] * self.mlp_ratio), dtype=self.dtype, name=f"{name}_mlp")
        return x + dropped(mlp(norm(name=f"{name}_norm2")(x), site)), attended


FAMILY = TNT
MODELS = {
    "tnt_s": dict(embed_dim=384, num_heads=6, inner_dim=24),
    "tnt_b": dict(embed_dim=640, num_heads=10, inner_dim=40),
}
ALIASES = {"tnt_s_patch16_224": "tnt_s", "tnt_b_patch16_224": "tnt_b"}
PUBLISHED = {"tnt_s": Published(81.5), "tnt_b": Published(82.9)}
