"""Hyena-DeiT: DeiT whose blocks are causal convolutions as long as the grid, looking both ways in turn."""

from collections.abc import Mapping
from typing import Any, ClassVar

import flax.linen as nn
import jax
import numpy as np

from flatten_jax.attention.hyena import COPIES, original_buffers
from flatten_jax.models.deit import DeiT
from flatten_jax.models.published import Published


class HyenaDeiT(DeiT):
    """DeiT with `hyena` (Zimerman and Wolf, 2023, arXiv 2309.13600), no class token, classified by its first token.

    The first token sees nothing of the picture but in blocks that look down and to the right. So even blocks do
    (`direction` "seq") and odd ones look up and to the left ("standard"). The hybrid has softmax attention in its last
    five blocks.

    The filters of a model are made for one grid: weights cannot be loaded into a model of another image_size. Beyond
    the original, grids need not be square.

    Attributes: those of `DeiT`, of which
        attn_options: `direction` may name several, "seq/standard", which blocks take in turn.
        pooling: "token" classifies the first token, as the original does; "mean" the mean of all.
    """

    hallmark: ClassVar[str] = "blocks.0.attn.filter_fn.bias"

    attn_type: str = "hyena"
    pooling: str = "token"

    def options_of(self, i: int, j: int) -> dict[str, Any]:
        options = super().options_of(i, j)
        if "direction" in options:
            turns = options["direction"].split("/")
            options["direction"] = turns[j % len(turns)]
        return options

    def pool(self, x: jax.Array) -> jax.Array:
        if self.pooling not in ("token", "mean"):
            raise ValueError(f"pooling={self.pooling!r} must be 'token' or 'mean'")
        return super().pool(x) if self.pooling == "mean" or self.class_token else x[:, 0]

    def torch_buffers(self) -> dict[str, np.ndarray]:
        (names,), length = self.attentions(), max(self.grid())
        return {
            f"blocks.{j}.attn.filter_fn.{buffer}": value
            for j, name in enumerate(names)
            if name == "hyena"
            for buffer, value in original_buffers(
                self.embed_dim, length, self.options_of(0, j).get("product_filter", False)
            ).items()
        }

    def torch_copies(self, entries: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {
            name.removesuffix(first) + copy: array
            for name, array in entries.items()
            for first, copies in COPIES.items()
            if name.endswith(f".{first}")
            for copy in copies
        }


_T = dict(embed_dim=192, num_heads=3)
_S = dict(embed_dim=384, num_heads=6)
_TURNS = nn.FrozenDict(direction="seq/standard")
FAMILY = HyenaDeiT
MODELS = {
    "hyena_deit_t": dict(_T, attn_options=_TURNS),
    "hyena_deit_s": dict(_S, attn_options=_TURNS),
    "hyena_deit_t_product": dict(_T, attn_options=_TURNS.copy({"product_filter": True})),
    "hyena_deit_t_hybrid": dict(_T, attn_options=_TURNS, attn_type="hyena*7+softmax"),
}
ALIASES: dict[str, str] = {}
PUBLISHED: dict[str, Published] = {}
