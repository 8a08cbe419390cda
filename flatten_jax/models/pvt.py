"""Pyramid Vision Transformer as in the FLatten release: mean pooling, a letter of attention per stage."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from flatten_jax.attention import ReducedAttention, takes_bias
from flatten_jax.ops.initializers import TORCH_CONV, ConvInit, position_embedding
from flatten_jax.models.backbone import Backbone
from flatten_jax.models.blocks import PatchEmbed, drop_path_rates, patch_grid, stage_letters
from flatten_jax.models.stack import block_class, on_grid, run_blocks
from flatten_jax.ops.norm import LayerNorm


class PVT(Backbone):
    """PVT (Wang et al., 2021) in the release's form. The four `pos_embed` are decayed, as there.

    Attributes: those of `Backbone`, and
        image_size: (height, width), each a multiple of 32.
        attn_type: one letter per stage.
        embed_dims, depths, num_heads, mlp_ratios: the architecture, one entry per stage.
        sr_ratios: spatial reduction of keys and values in softmax stages.
        la_sr_ratios: the same in linear stages, a digit per stage (the release's PVT_LA_SR_RATIOS).
    """

    attn_type: str = "LLLL"
    embed_dims: tuple[int, ...] = (64, 128, 320, 512)
    depths: tuple[int, ...] = (2, 2, 2, 2)
    num_heads: tuple[int, ...] = (1, 2, 5, 8)
    mlp_ratios: tuple[float, ...] = (8, 8, 4, 4)
    sr_ratios: tuple[int, ...] = (8, 4, 2, 1)
    la_sr_ratios: str = "1111"

    def level_info(self) -> list[dict[str, Any]]:
        return [
            {"num_chs": channels, "reduction": 4 * 2**i, "module": f"block{i + 1}"}
            for i, channels in enumerate(self.embed_dims)
        ]

    def block_letters(self) -> list[str]:
        return stage_letters(self.attn_type, self.depths)

    def idle_options(self) -> set[str]:
        biased = {takes_bias(letter) for letter in set("".join(self.block_letters()))}
        return (
            super().idle_options()
            | ({"la_sr_ratios"} if False not in biased else set())
            | ({"sr_ratios"} if True not in biased else set())
        )

    def levels(self, images: jax.Array, train: bool, count: int) -> list[jax.Array]:
        patch_grid(self.image_size, 4 * 2 ** (len(self.depths) - 1))  # said once for the image, not stage by stage
        x, levels = images, []
        for i in range(count):
            embed = PatchEmbed(self.embed_dims[i], 4 if i == 0 else 2, dtype=self.dtype, name=f"patch_embed{i + 1}")
            x = embed(x)
            pos_embed = self.param(f"pos_embed{i + 1}", position_embedding, (1, x.shape[1] * x.shape[2], x.shape[3]))
            x = x + pos_embed.astype(x.dtype).reshape(1, *x.shape[1:])
            x = self.stage(x, i, train)
            levels.append(x)
        return levels

    def stage(
        self,
        x: jax.Array,
        i: int,
        train: bool,
        conv_init: ConvInit = TORCH_CONV,
        mlp_local: Callable[..., nn.Module] | None = None,
    ) -> jax.Array:
        """The blocks of stage i on a map (B, height, width, C)."""
        if len(self.la_sr_ratios) != len(self.depths) or not self.la_sr_ratios.isdecimal() or "0" in self.la_sr_ratios:
            raise ValueError(f"la_sr_ratios={self.la_sr_ratios!r} needs a digit above 0 for each stage, as in '1111'")
        letters, rates = self.block_letters()[i], drop_path_rates(self.drop_path, self.depths)[i]
        blocks = []
        for j, letter in enumerate(letters):
            attention = partial(
                ReducedAttention,
                self.num_heads[i],
                attn_type=letter,
                sr_ratio=self.sr_ratios[i] if takes_bias(letter) else int(self.la_sr_ratios[i]),
                options=self.attn_options,
                dtype=self.dtype,
                conv_init=conv_init,
            )
            make = partial(block_class(self.remat, self.remat_policy), mlp_local=mlp_local, dtype=self.dtype)
            blocks.append(make(attention, self.mlp_ratios[i], self.epsilon, name=f"block{i + 1}_{j}"))
        return on_grid(partial(run_blocks, blocks, letters, rates, train=train, scan=self.scan), x)

    def final_norm(self, x: jax.Array) -> jax.Array:
        """None: the release makes this norm and never applies it; its weights are there to be loaded and handed on."""
        LayerNorm(epsilon=self.epsilon, name="norm")(jnp.zeros((1, self.embed_dims[-1])))
        return x
