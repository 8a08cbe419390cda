"""DeiT, with softmax attention and a class token as in timm, or with linear attention and mean pooling."""

from collections.abc import Mapping
from functools import partial
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from flatten_jax.attention import QKVAttention
from flatten_jax.initializers import position_embedding
from flatten_jax.models.layers import LayerNorm, PatchEmbed, block_class, classifier, drop_path_rates, patch_grid


class DeiT(nn.Module):
    """DeiT (Touvron et al., 2021); FLatten-DeiT is the same with linear blocks and no class token.

    Attributes:
        num_classes: width of the logits.
        image_size: (height, width), each a multiple of `patch_size`.
        patch_size, embed_dim, depth, num_heads, mlp_ratio: the architecture.
        class_token: classify by a learned token; otherwise by the mean of the tokens. Softmax attention only.
        attn_type: one letter of `attention.MIXERS` for all blocks, or one for each.
        attn_options: further attributes of the mixers, such as {"focusing_factor": 3}.
        drop_path: stochastic-depth rate of the last block; it grows linearly from 0.
        dtype: of the computation (None: float32). Parameters are float32, logits too.
        remat: compute blocks again in the backward pass instead of keeping their intermediates.
    """

    no_weight_decay: ClassVar[tuple[str, ...]] = ("pos_embed", "cls_token")

    num_classes: int = 1000
    image_size: tuple[int, int] = (224, 224)
    patch_size: int = 16
    embed_dim: int = 192
    depth: int = 12
    num_heads: int = 3
    mlp_ratio: float = 4.0
    class_token: bool = False
    attn_type: str = "L"
    attn_options: Mapping[str, Any] = nn.FrozenDict()
    drop_path: float = 0.0
    dtype: jnp.dtype | None = None
    remat: bool = False

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        """images: (B, height, width, 3), normalised -> logits (B, num_classes), float32."""
        grid = patch_grid(self.image_size, self.patch_size)
        if len(self.attn_type) not in (1, self.depth):
            raise ValueError(f"attn_type={self.attn_type!r} needs one letter, or one for each of {self.depth} blocks")
        letters = self.attn_type * self.depth if len(self.attn_type) == 1 else self.attn_type

        x = PatchEmbed(self.embed_dim, self.patch_size, dtype=self.dtype, name="patch_embed")(images)
        if self.class_token:
            token = self.param("cls_token", position_embedding, (1, 1, self.embed_dim))
            x = jnp.concatenate([jnp.broadcast_to(token.astype(x.dtype), (x.shape[0], 1, self.embed_dim)), x], axis=1)
        pos_embed = self.param("pos_embed", position_embedding, (1, x.shape[1], self.embed_dim))
        x = x + pos_embed.astype(x.dtype)

        for i, rate in enumerate(drop_path_rates(self.drop_path, self.depth)):
            attention = partial(
                QKVAttention, self.num_heads, attn_type=letters[i], options=self.attn_options, dtype=self.dtype
            )
            block = block_class(self.remat)(attention, self.mlp_ratio, rate, dtype=self.dtype, name=f"blocks_{i}")
            x = block(x, grid, train)
        x = LayerNorm(epsilon=1e-6, dtype=self.dtype, name="norm")(x)
        x = x[:, 0] if self.class_token else x.mean(axis=1)
        return classifier(self.num_classes, self.dtype)(x).astype(jnp.float32)
