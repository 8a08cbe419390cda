"""Pyramid Vision Transformer as in the FLatten release: mean pooling, a letter of attention per stage."""

from collections.abc import Mapping
from functools import partial
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from flatten_jax.attention import ReducedAttention
from flatten_jax.initializers import position_embedding
from flatten_jax.models.layers import LayerNorm, PatchEmbed, block_class, classifier, drop_path_rates, patch_grid


class PVT(nn.Module):
    """PVT (Wang et al., 2021) in the release's form.

    Attributes:
        num_classes: width of the logits.
        image_size: (height, width), each a multiple of 32.
        embed_dims, depths, num_heads, mlp_ratios: the architecture, one entry per stage.
        attn_type: one letter of `attention.MIXERS` per stage.
        sr_ratios: spatial reduction of keys and values in softmax stages.
        la_sr_ratios: the same in linear stages, a digit per stage (the release's PVT_LA_SR_RATIOS).
        attn_options: further attributes of the mixers, such as {"focusing_factor": 3}.
        drop_path: stochastic-depth rate of the last block; it grows linearly from 0.
        dtype: of the computation (None: float32). Parameters are float32, logits too.
        remat: compute blocks again in the backward pass instead of keeping their intermediates.
    """

    no_weight_decay: ClassVar[tuple[str, ...]] = ()  # pos_embed1..4 are decayed in the release

    num_classes: int = 1000
    image_size: tuple[int, int] = (224, 224)
    embed_dims: tuple[int, ...] = (64, 128, 320, 512)
    depths: tuple[int, ...] = (2, 2, 2, 2)
    num_heads: tuple[int, ...] = (1, 2, 5, 8)
    mlp_ratios: tuple[float, ...] = (8, 8, 4, 4)
    attn_type: str = "LLLL"
    sr_ratios: tuple[int, ...] = (8, 4, 2, 1)
    la_sr_ratios: str = "1111"
    attn_options: Mapping[str, Any] = nn.FrozenDict()
    drop_path: float = 0.0
    dtype: jnp.dtype | None = None
    remat: bool = False

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        """images: (B, height, width, 3), normalised -> logits (B, num_classes), float32."""
        stages = len(self.depths)
        patch_grid(self.image_size, 4 * 2 ** (stages - 1))  # said once for the whole image, not stage by stage
        if not len(self.attn_type) == len(self.la_sr_ratios) == stages:
            raise ValueError(
                f"attn_type={self.attn_type!r} and la_sr_ratios={self.la_sr_ratios!r} need {stages} letters and digits"
            )
        rates = drop_path_rates(self.drop_path, sum(self.depths))
        x, grid = images, self.image_size
        for i in range(stages):
            patch_size = 4 if i == 0 else 2
            grid = patch_grid(grid, patch_size)
            x = PatchEmbed(self.embed_dims[i], patch_size, norm=True, dtype=self.dtype, name=f"patch_embed{i + 1}")(x)
            pos_embed = self.param(f"pos_embed{i + 1}", position_embedding, (1, x.shape[1], self.embed_dims[i]))
            x = x + pos_embed.astype(x.dtype)
            attention = partial(
                ReducedAttention,
                self.num_heads[i],
                attn_type=self.attn_type[i],
                sr_ratio=self.sr_ratios[i] if self.attn_type[i] == "S" else int(self.la_sr_ratios[i]),
                options=self.attn_options,
                dtype=self.dtype,
            )
            for j in range(self.depths[i]):
                rate = rates[sum(self.depths[:i]) + j]
                name = f"block{i + 1}_{j}"
                block = block_class(self.remat)(attention, self.mlp_ratios[i], rate, dtype=self.dtype, name=name)
                x = block(x, grid, train)
            if i < stages - 1:
                x = x.reshape(x.shape[0], *grid, -1)
        # The release makes this norm and never applies it; its weights are there to be loaded and handed back.
        LayerNorm(epsilon=1e-6, name="norm")(jnp.zeros((1, self.embed_dims[-1])))
        return classifier(self.num_classes, self.dtype)(x.mean(axis=1)).astype(jnp.float32)
