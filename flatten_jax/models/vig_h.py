"""ViG-H: the hierarchical ViG, four stages of gated linear attention."""

from typing import ClassVar

import flax.linen as nn
import jax

from flatten_jax.attention import Site
from flatten_jax.models.published import Published
from flatten_jax.models.staged import Doubling, Layered
from flatten_jax.models.vig import GatedBlock, rounded_up
from flatten_jax.ops.convolution import Conv
from flatten_jax.ops.gelu import gelu
from flatten_jax.ops.norm import LayerNorm


class ViGH(Layered, Doubling):
    """The hierarchical ViG (Liao et al., AAAI 2025, arXiv 2405.18425): stages of stride 4, 8, 16 and 32.

    x + op(LN(x)), then x + mlp(LN(x)), with `gla` as `op`. Nothing depends on the image's size; every convolution of
    stride 2 rounds up. With feature_norm maps have the norms of the original's detection version, `outnorm0`, ....
    In the original the last norm and the head lie in `classifier`.

    Attributes: those of `Backbone`, and
        attn_type: an attention for each stage, see `attention.pattern`.
        embed_dim, depths, num_heads: the architecture; the width doubles from stage to stage.
        mlp_ratio: hidden width of the MLP over C, which is then rounded up to a multiple of 32.
    """

    hallmark: ClassVar[str] = "layers.0.blocks.0.op.gk_proj.0.weight"
    epsilon: ClassVar[float] = 1e-5

    attn_type: str = "gla"
    depths: tuple[int, ...] = (2, 2, 5, 2)
    num_heads: tuple[int, ...] = (3, 6, 12, 24)
    mlp_ratio: float = 8 / 3

    def stem(self, images: jax.Array, train: bool) -> jax.Array:
        x = gelu(self._halved(images, self.embed_dim // 2, "patch_embed", 0, 2))
        return self._halved(x, self.embed_dim, "patch_embed", 5, 7)

    @nn.nowrap
    def blocks(self, x: jax.Array, i: int, train: bool) -> jax.Array:
        hidden = rounded_up(self.mlp_ratio * x.shape[3], 32)
        return self.stage(x, Site(x.shape[1:3], train=train), i, "blocks_", block=_Block, hidden_dim=hidden)[-1]

    @nn.nowrap
    def downsample(self, x: jax.Array, i: int, train: bool) -> jax.Array:
        return self._halved(x, 2 * x.shape[3], "downsample", 1, 3)

    @nn.nowrap
    def _halved(self, x: jax.Array, channels: int, name: str, conv: int, norm: int) -> jax.Array:
        """A convolution of stride 2 and a LayerNorm, of these numbers in their names: (B, rows, columns, channels)."""
        x = Conv(channels, 3, 2, padding=1, dtype=self.dtype, name=f"{name}_{conv}")(x)
        return LayerNorm(epsilon=self.epsilon, dtype=self.dtype, name=f"{name}_{norm}")(x)

    def map_norm(self, x: jax.Array, i: int) -> jax.Array:
        return LayerNorm(epsilon=self.epsilon, dtype=self.dtype, name=f"outnorm{i}")(x)

    def original(self, name: str) -> str:
        return f"classifier.{name}" if name.startswith(("norm.", "head.")) else name


class _Block(GatedBlock):
    """With LayerNorms, and names of its own."""

    names: ClassVar[tuple[str, str, str]] = ("norm", "op", "norm2")
    mlp_names: ClassVar[tuple[str, str]] = ("fc1", "fc2")

    @nn.nowrap
    def norm(self, x: jax.Array, name: str) -> jax.Array:
        return LayerNorm(epsilon=self.epsilon, dtype=self.dtype, name=name)(x)


_OPTIONS = nn.FrozenDict(xavier_init="conv")
_WIDE = dict(embed_dim=128, num_heads=(4, 8, 16, 32))
FAMILY = ViGH
MODELS = {
    "vig_h_t": dict(depths=(2, 2, 5, 2), attn_options=_OPTIONS),
    "vig_h_s": dict(depths=(2, 2, 17, 2), attn_options=_OPTIONS),
    "vig_h_b": dict(_WIDE, depths=(2, 2, 17, 2), attn_options=_OPTIONS),
}
ALIASES: dict[str, str] = {}
PUBLISHED = {"vig_h_t": Published(82.8), "vig_h_s": Published(83.8), "vig_h_b": Published(84.2)}
