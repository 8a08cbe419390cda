"""Models of several stages, each on a grid of half the sides of the one before, or nearly."""

from functools import partial
from typing import Any, ClassVar

import flax.linen as nn
import jax

from flatten_jax.attention import pattern
from flatten_jax.hosts import QKVAttention
from flatten_jax.models.backbone import Backbone
from flatten_jax.models.blocks import Scope
from flatten_jax.ops.initializers import TORCH_CONV, ConvInit


class Staged(Backbone):
    """Base of the models of several stages, which are their levels.

    Attributes: those of `Backbone`, and, which a family declares,
        attn_type: an attention for each stage, see `attention.pattern`.
        embed_dims, depths, num_heads: the architecture, one entry per stage.
    """

    level_name: ClassVar[str] = "block{1}"  # the original's module of a level, of its number from 0 and from 1
    first_stride: ClassVar[int] = 4
    conv_init: ClassVar[ConvInit] = TORCH_CONV  # of the attentions' convolutions

    def widths(self) -> tuple[int, ...]:
        """Channels of each stage."""
        return tuple(self.embed_dims)

    @property
    def stride(self) -> int:
        """Of the last stage."""
        return self.first_stride * 2 ** (len(self.depths) - 1)

    def level_info(self) -> list[dict[str, Any]]:
        return [
            {"num_chs": channels, "reduction": self.first_stride * 2**i, "module": self.level_name.format(i, i + 1)}
            for i, channels in enumerate(self.widths())
        ]

    def attentions(self) -> list[tuple[str, ...]]:
        return pattern(self.attn_type, self.depths)

    def host(self, i: int, j: int, attention: str, options: dict[str, Any]) -> partial[nn.Module]:
        return partial(
            QKVAttention,
            self.num_heads[i],
            attn_type=attention,
            options=options,
            dtype=self.dtype,
            conv_init=self.conv_init,
        )


class Doubling(Staged):
    """Base of the models whose width doubles from stage to stage.

    Attributes: those of `Staged`, but for embed_dims, and
        embed_dim: channels of the first stage.
    """

    embed_dim: int = 96

    def widths(self) -> tuple[int, ...]:
        return tuple(self.embed_dim * 2**i for i in range(len(self.depths)))


class Layered(Staged):
    """Base of the models whose stages are `layers`, with the step to the next stage inside the one before it."""

    level_name: ClassVar[str] = "layers.{0}"

    def stem(self, images: jax.Array, train: bool) -> jax.Array:
        """(B, height, width, 3) -> (B, rows, columns, C), of stride 4."""
        raise NotImplementedError

    def blocks(self, x: jax.Array, i: int, train: bool) -> jax.Array:
        """The blocks of stage i on a map (B, height, width, C), which belong to the layer."""
        raise NotImplementedError

    def downsample(self, x: jax.Array, i: int, train: bool) -> jax.Array:
        """What stage i gives as input of the next, of half the sides, by modules that belong to the layer."""
        raise NotImplementedError

    def levels(self, images: jax.Array, train: bool, count: int) -> list[jax.Array]:
        x, levels = self.stem(images, train), []
        for i in range(count):

            def layer(x: jax.Array, i: int = i) -> tuple[jax.Array, jax.Array]:
                level = self.blocks(x, i, train)
                return level, self.downsample(level, i, train) if i < count - 1 else level

            level, x = Scope(layer, name=f"layers_{i}")(x)
            levels.append(level)
        return levels
