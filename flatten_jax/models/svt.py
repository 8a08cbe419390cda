"""SVT-H: PVTv2's pyramid with a gate in the wavelet domain first, softmax after it, and a class token at the end."""

from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from flatten_jax.attention.contract import heads
from flatten_jax.attention.softmax import softmax_attention
from flatten_jax.models.blocks import DWConv, Mlp, PatchEmbed, conv_norm
from flatten_jax.models.published import Published
from flatten_jax.models.pvt import PVT
from flatten_jax.ops.dense import Dense
from flatten_jax.ops.initializers import FAN_OUT_CONV, ConvInit
from flatten_jax.ops.norm import LayerNorm


class SVT(PVT):
    """Scattering Vision Transformer, SVT-H (Patro and Agneeswaran, NeurIPS 2023, arXiv 2311.01310).

    Any image_size, the convolutions pad; weights belong to one size through `complex_weight_ll` of the gate. The maps
    of features_only are those after the norm of their stage, of the last stage before it, so there is no further
    `feature_norm`. `forward_features` gives tokens (B, 1 + N, C), the class token first.

    Attributes: those of `PVT`, and
        stem_width: channels of the three convolutions before the patches.
        token_labels: add half of the largest logit over the tokens, which `aux_head` gives; the original trains that
            head with labels of tokens.
    """

    hallmark: ClassVar[str] = "block1.0.attn.complex_weight_ll"
    level_name: ClassVar[str] = "norm{1}"
    conv_init: ClassVar[ConvInit] = FAN_OUT_CONV
    heads: ClassVar[tuple[tuple[str, ...], ...]] = (("head",), ("aux_head",))

    attn_type: str = "svt,softmax,softmax,softmax"
    embed_dims: tuple[int, ...] = (64, 128, 320, 448)
    depths: tuple[int, ...] = (3, 4, 6, 3)
    num_heads: tuple[int, ...] = (2, 4, 10, 14)
    sr_ratios: tuple[int, ...] = (1, 1, 1, 1)
    stem_width: int = 32
    token_labels: bool = True

    def level_info(self) -> list[dict[str, Any]]:
        *info, last = super().level_info()
        return [*info, {**last, "module": f"block{len(self.depths)}"}]

    def idle_options(self) -> set[str]:
        return super().idle_options() | {"feature_norm", "unused_norm"}

    def levels(self, images: jax.Array, train: bool, count: int) -> list[jax.Array]:
        x, levels = images, []
        for i in range(count):
            embed = partial(PatchEmbed, patch_size=3, stride=2, padding=1, conv_init=self.conv_init, dtype=self.dtype)
            if i == 0:
                x = _Stem(self.stem_width, partial(embed, self.embed_dims[0]), self.dtype, name="patch_embed1")(
                    x, train
                )
            else:
                x = embed(self.embed_dims[i], name=f"patch_embed{i + 1}")(x)
            x = self.blocks(x, i, train, mlp_local=DWConv)
            if i < len(self.depths) - 1:
                x = LayerNorm(epsilon=self.epsilon, dtype=self.dtype, name=f"norm{i + 1}")(x)
            levels.append(x)
        return levels

    def final_norm(self, x: jax.Array) -> jax.Array:
        """(B, height, width, C) -> (B, 1 + N, C), a class token before the others."""
        x = x.reshape(x.shape[0], -1, x.shape[3])
        x = ClassBlock(self.num_heads[-1], self.mlp_ratios[-1], self.epsilon, self.dtype, name="post_network_0")(x)
        return LayerNorm(epsilon=self.epsilon, dtype=self.dtype, name=f"norm{len(self.depths)}")(x)

    def pool(self, x: jax.Array) -> jax.Array:
        """The class token; all tokens where `classify` looks at them."""
        return x if self.num_classes and self.token_labels else x[:, 0]

    def classify(self, x: jax.Array, train: bool) -> jax.Array:
        if not self.token_labels:
            return super().classify(x, train)
        logits = super().classify(x[:, 0], train)
        of_tokens = Dense(self.num_classes, dtype=self.dtype, name="aux_head")(x[:, 1:])
        return logits + 0.5 * of_tokens.max(axis=1)


class _Stem(nn.Module):
    """Three convolutions with BatchNorm and ReLU, the first of stride 2, then patches of stride 2."""

    width: int
    embed: Callable[..., PatchEmbed]
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        for i, (size, stride) in enumerate(((7, 2), (3, 1), (3, 1))):
            names = f"conv_{3 * i}", f"conv_{3 * i + 1}"
            layers = partial(conv_norm, names=names, use_bias=False, conv_init=FAN_OUT_CONV, dtype=self.dtype)
            x = nn.relu(layers(x, train, self.width, size, stride))
        embed = self.embed()
        nn.share_scope(self, embed)
        return embed(x)


class ClassBlock(nn.Module):
    """A token, at first the mean of all others, that attends to itself and to them, and has an MLP; they stay."""

    num_heads: int
    mlp_ratio: float
    epsilon: float
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """(B, N, C) -> (B, 1 + N, C)."""
        norm = partial(LayerNorm, self.epsilon, self.dtype)
        token = x.mean(axis=1, keepdims=True)
        normed = norm(name="norm1")(jnp.concatenate([token, x], axis=1))
        token = token + _ClassAttention(self.num_heads, self.dtype, name="attn")(normed)
        mlp = Mlp(int(x.shape[2] * self.mlp_ratio), dtype=self.dtype, name="mlp")
        token = token + mlp(norm(name="norm2")(token), None)
        return jnp.concatenate([token, x], axis=1)


class _ClassAttention(nn.Module):
    """Softmax attention of the first token to all."""

    num_heads: int
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """(B, 1 + N, C) -> (B, 1, C)."""
        channels, dense = x.shape[2], partial(Dense, dtype=self.dtype)
        q = dense(channels, name="q")(x[:, :1])
        k, v = jnp.split(dense(2 * channels, name="kv")(x), 2, axis=-1)
        out = softmax_attention(*(heads(a, self.num_heads) for a in (q, k, v)))
        return dense(channels, name="proj")(out.reshape(q.shape))


FAMILY = SVT
MODELS = {
    "svt_h_s": dict(embed_dims=(64, 128, 320, 448), depths=(3, 4, 6, 3), num_heads=(2, 4, 10, 14)),
    "svt_h_b": dict(embed_dims=(64, 128, 320, 512), depths=(3, 4, 12, 3), num_heads=(2, 4, 10, 16), stem_width=64),
    "svt_h_l": dict(embed_dims=(96, 192, 384, 512), depths=(3, 6, 18, 3), num_heads=(3, 6, 12, 16), stem_width=64),
}
ALIASES: dict[str, str] = {}
_NOTE = "trained with token labels"
PUBLISHED = {
    "svt_h_s": Published(84.2, note=_NOTE),
    "svt_h_b": Published(85.2, note=_NOTE),
    "svt_h_l": Published(85.7, note=_NOTE),
}
