"""ViG-H: the hierarchical ViG, four stages of gated linear attention."""

from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from flatten_jax.attention import Site, pattern
from flatten_jax.hosts import QKVAttention
from flatten_jax.models.backbone import Backbone
from flatten_jax.models.blocks import Scope, dropped_path
from flatten_jax.models.published import Published
from flatten_jax.models.vig import GatedMlp, rounded_up
from flatten_jax.ops.convolution import Conv
from flatten_jax.ops.gelu import gelu
from flatten_jax.ops.norm import LayerNorm


class ViGH(Backbone):
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
    embed_dim: int = 96
    depths: tuple[int, ...] = (2, 2, 5, 2)
    num_heads: tuple[int, ...] = (3, 6, 12, 24)
    mlp_ratio: float = 8 / 3

    def level_info(self) -> list[dict[str, Any]]:
        return [
            {"num_chs": self.embed_dim * 2**i, "reduction": 4 * 2**i, "module": f"layers.{i}"}
            for i in range(len(self.depths))
        ]

    def attentions(self) -> list[tuple[str, ...]]:
        return pattern(self.attn_type, self.depths)

    def levels(self, images: jax.Array, train: bool, count: int) -> list[jax.Array]:
        conv = partial(Conv, kernel_size=3, stride=2, padding=1, dtype=self.dtype)
        norm = partial(LayerNorm, epsilon=self.epsilon, dtype=self.dtype)
        x = gelu(norm(name="patch_embed_2")(conv(self.embed_dim // 2, name="patch_embed_0")(images)))
        x, levels = norm(name="patch_embed_7")(conv(self.embed_dim, name="patch_embed_5")(x)), []
        for i in range(count):

            def host(j: int, attention: str, options: dict[str, Any], i: int = i) -> Any:
                return partial(QKVAttention, self.num_heads[i], attn_type=attention, options=options, dtype=self.dtype)

            def layer(x: jax.Array, i: int = i, host: Any = host) -> tuple[jax.Array, jax.Array]:
                channels = self.embed_dim * 2**i
                hidden = rounded_up(self.mlp_ratio * channels, 32)
                site = Site(x.shape[1:3], train=train)
                level = self.stage(x, site, i, host, "blocks_", block=_Block, hidden_dim=hidden)[-1]
                if i == count - 1:
                    return level, level
                return level, norm(name="downsample_3")(conv(2 * channels, name="downsample_1")(level))

            level, x = Scope(layer, name=f"layers_{i}")(x)
            levels.append(level)
        return levels

    def map_norm(self, x: jax.Array, i: int) -> jax.Array:
        return LayerNorm(epsilon=self.epsilon, dtype=self.dtype, name=f"outnorm{i}")(x)

    def original(self, name: str) -> str:
        return f"classifier.{name}" if name.startswith(("norm.", "head.")) else name


class _Block(nn.Module):
    """Attributes: those of `blocks.Block`, and hidden_dim of the MLP."""

    attention: Callable[..., nn.Module]
    hidden_dim: int
    epsilon: float
    dtype: jnp.dtype | None

    @nn.compact
    def __call__(self, x: jax.Array, site: Site, rate: float | jax.Array = 0.0) -> tuple[jax.Array, jax.Array]:
        norm = partial(LayerNorm, epsilon=self.epsilon, dtype=self.dtype)
        dropped = partial(dropped_path, self, rate=rate, train=site.train)
        attended = self.attention(name="op")(norm(name="norm")(x), site)
        x = x + dropped(attended)
        mlp = GatedMlp(self.hidden_dim, ("fc1", "fc2"), self.dtype, name="mlp")
        return x + dropped(mlp(norm(name="norm2")(x))), attended


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
