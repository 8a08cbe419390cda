"""CSwin as in the FLatten release: linear stages over the whole grid, softmax stages in cross-shaped stripes."""

from functools import partial
from typing import Any, ClassVar

import jax

from flatten_jax.attention import StripeAttention, takes_bias
from flatten_jax.ops.convolution import Conv
from flatten_jax.models.backbone import Backbone
from flatten_jax.models.blocks import PatchEmbed, drop_path_rates, stage_letters
from flatten_jax.models.stack import block_class, on_grid, run_blocks
from flatten_jax.ops.norm import LayerNorm


class CSwin(Backbone):
    """CSwin (Dong et al., 2022) in the release's form.

    Any image_size: the convolutions between the stages pad, and a grid that stripes do not divide is padded with zeros.
    The last stage always attends to its whole grid, in one branch.

    Attributes: those of `Backbone`, and
        attn_type: one letter per stage, or with an M and a number: see `stage_letters`.
        embed_dim, depths, num_heads, mlp_ratio: the architecture; the width doubles from stage to stage.
        split_size: width of the stripes of softmax blocks, one entry per stage; 0: a 32nd of the shorter side of the
            image and at least 7, which is 7 at 224 px and 12 at 384 px as in the release.
        la_split_size: side of the window of linear blocks, per stage, as "56-28-14-7"; "": the whole grid, which is
            what the release's values come to.
    """

    no_weight_decay: ClassVar[tuple[str, ...]] = ("pos_embed", "cls_token")
    epsilon: ClassVar[float] = 1e-5

    attn_type: str = "LLSS"
    embed_dim: int = 64
    depths: tuple[int, ...] = (2, 4, 18, 1)
    num_heads: tuple[int, ...] = (2, 4, 8, 16)
    mlp_ratio: float = 4.0
    split_size: tuple[int, ...] = (1, 2, 0, 0)
    la_split_size: str = ""

    def level_info(self) -> list[dict[str, Any]]:
        return [
            {"num_chs": self.embed_dim * 2**i, "reduction": 4 * 2**i, "module": f"stage{i + 1}"}
            for i in range(len(self.depths))
        ]

    def block_letters(self) -> list[str]:
        return stage_letters(self.attn_type, self.depths)

    def idle_options(self) -> set[str]:
        # The last stage has neither stripes nor windows.
        biased = {takes_bias(letter) for letter in set("".join(self.block_letters()[:-1]))}
        return (
            super().idle_options()
            | ({"la_split_size"} if False not in biased else set())
            | ({"split_size"} if True not in biased else set())
        )

    def levels(self, images: jax.Array, train: bool, count: int) -> list[jax.Array]:
        x, levels = images, []
        letters, rates = self.block_letters(), drop_path_rates(self.drop_path, self.depths)
        la_split_size, split_size = self._linear_windows(), self._stripes()
        for i in range(count):
            if i == 0:
                x = Conv(self.embed_dim, 7, 4, padding=2, dtype=self.dtype, name="stage1_conv_embed_0")(x)
                x = LayerNorm(epsilon=1e-5, dtype=self.dtype, name="stage1_conv_embed_2")(x)
            else:
                merge = partial(PatchEmbed, patch_size=3, stride=2, padding=1, conv_name="conv", dtype=self.dtype)
                x = merge(self.embed_dim * 2**i, name=f"merge{i}")(x)
            blocks = []
            for j, letter in enumerate(letters[i]):
                striped = takes_bias(letter) and i < len(self.depths) - 1
                attention = partial(
                    StripeAttention,
                    self.num_heads[i],
                    split_size=split_size[i] if striped else la_split_size[i],
                    branches=2 if striped else 1,
                    attn_type=letter,
                    options=self.attn_options,
                    dtype=self.dtype,
                )
                make = partial(block_class(self.remat, self.remat_policy), own_scope=False, dtype=self.dtype)
                blocks.append(make(attention, self.mlp_ratio, self.epsilon, name=f"stage{i + 1}_{j}"))
            run = partial(run_blocks, blocks, letters[i], rates[i], train=train, scan=self.scan)
            x = on_grid(run, x)
            levels.append(x)
        return levels

    def _stripes(self) -> list[int]:
        if len(self.split_size) != len(self.depths) or min(self.split_size) < 0:
            raise ValueError(f"split_size={self.split_size} needs a width for each of {len(self.depths)} stages")
        return [size or max(7, min(self.image_size) // 32) for size in self.split_size]

    def _linear_windows(self) -> list[int]:
        sizes = self.la_split_size.split("-") if self.la_split_size else ["0"] * len(self.depths)
        if len(sizes) != len(self.depths) or not all(size.isdecimal() for size in sizes):
            raise ValueError(
                f"la_split_size={self.la_split_size!r} needs a number for each of {len(self.depths)} stages, "
                "joined by '-', as in '56-28-14-7'"
            )
        return [*(int(size) for size in sizes[:-1]), 0]
