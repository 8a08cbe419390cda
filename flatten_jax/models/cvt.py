"""CvT: convolutions instead of positions, before every stage and in the projections of its attention."""

from collections.abc import Callable
from functools import partial
from typing import ClassVar

import flax.linen as nn
import jax

from flatten_jax.attention import Site
from flatten_jax.attention.contract import Grid
from flatten_jax.models.blocks import PatchEmbed, behind_token, drop_path_rates
from flatten_jax.models.published import Published
from flatten_jax.models.staged import Staged
from flatten_jax.ops.dense import Dense
from flatten_jax.ops.initializers import TORCH_CONV, linear_kernel

_EMBEDS = (7, 4, 2), (3, 2, 1)  # size, stride and padding of the patches, in the first stage and the others


class CvT(Staged):
    """CvT (Wu et al., ICCV 2021, arXiv 2103.15808). No positions are added anywhere.

    Any image_size: the convolutions pad. Drop-path grows from 0 within the last stage, and is 0 before it. Of one
    picture the logits are (1, num_classes), where the original leaves out the axis of the batch.

    Attributes: those of `Backbone`, and
        attn_type: an attention for each stage.
        embed_dims, depths, num_heads, mlp_ratio: the architecture, three stages.
        class_token: classify by a learned token of the last stage, which not every attention takes; otherwise by the
            mean of the tokens.
    """

    hallmark: ClassVar[str] = "stage0.patch_embed.proj.weight"
    no_weight_decay: ClassVar[tuple[str, ...]] = ("cls_token",)
    epsilon: ClassVar[float] = 1e-5
    level_name: ClassVar[str] = "stage{0}"

    attn_type: str = "cvt"
    embed_dims: tuple[int, ...] = (64, 192, 384)
    depths: tuple[int, ...] = (1, 2, 10)
    num_heads: tuple[int, ...] = (1, 3, 6)
    mlp_ratio: float = 4.0
    class_token: bool = True

    def rates(self) -> list[list[float]]:
        *before, last = self.depths
        return [*([0.0] * depth for depth in before), *drop_path_rates(self.drop_path, [last])]

    def levels(self, images: jax.Array, train: bool, count: int) -> list[jax.Array]:
        x, levels = images, []
        for i in range(count):
            prefix = int(self.class_token and i == len(self.depths) - 1)

            def blocks(x: jax.Array, grid: Grid, i: int = i, prefix: int = prefix) -> jax.Array:
                site = Site(grid, prefix=prefix, train=train)
                settings = dict(mlp_ratio=self.mlp_ratio, mlp_activation=quick_gelu)
                x = self.stage(x, site, i, "blocks_", **settings)[-1]
                return x if prefix else x.reshape(x.shape[0], *grid, x.shape[2])

            size, stride, padding = _EMBEDS[i > 0]
            embed = partial(PatchEmbed, self.embed_dims[i], size, stride, padding, dtype=self.dtype)
            x = _Stage(embed, blocks, bool(prefix), name=f"stage{i}")(x)
            levels.append(x)
        return levels

    def pool(self, x: jax.Array) -> jax.Array:
        return x[:, 0] if self.class_token else super().pool(x)

    def as_map(self, x: jax.Array) -> jax.Array:
        if x.ndim == 4:
            return x
        height, width = self.image_size
        for i in range(len(self.depths)):
            size, stride, padding = _EMBEDS[i > 0]
            height, width = ((side + 2 * padding - size) // stride + 1 for side in (height, width))
        return x[:, 1:].reshape(x.shape[0], height, width, -1)

    def classify(self, x: jax.Array, train: bool) -> jax.Array:
        initial = TORCH_CONV._replace(kernel=linear_kernel)
        return Dense(self.num_classes, dtype=self.dtype, initial=initial, name="head")(x)


class _Stage(nn.Module):
    """A level in the names of parameters: patches, a class token before them, blocks.

    Attributes:
        embed: makes the layer of patches.
        blocks: is called with (tokens (B, N, C), their grid).
    """

    embed: Callable[..., nn.Module]
    blocks: Callable[[jax.Array, Grid], jax.Array]
    class_token: bool

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = self.embed(name="patch_embed")(x)
        tokens = x.reshape(x.shape[0], -1, x.shape[3])
        if self.class_token:
            tokens = behind_token(self, tokens)
        return self.blocks(tokens, x.shape[1:3])


def quick_gelu(x: jax.Array) -> jax.Array:
    """x sigmoid(1.702 x), in the dtype of x."""
    return x * jax.nn.sigmoid(1.702 * x)


_W24 = dict(embed_dims=(192, 768, 1024), depths=(2, 2, 20), num_heads=(3, 12, 16))
_SIZES = {"13": dict(depths=(1, 2, 10)), "21": dict(depths=(1, 4, 16))}
FAMILY = CvT
MODELS = {
    **{f"cvt_{size}": own for size, own in _SIZES.items()},
    **{f"cvt_{size}_384": dict(own, image_size=(384, 384)) for size, own in _SIZES.items()},
    "cvt_w24": dict(_W24, image_size=(384, 384)),
}
# The names of the original's configs.
ALIASES = {
    **{f"cvt-{size}-224x224": f"cvt_{size}" for size in _SIZES},
    **{f"cvt-{size}-384x384": f"cvt_{size}_384" for size in _SIZES},
    "cvt-w24-384x384": "cvt_w24",
}
PUBLISHED = {
    "cvt_13": Published(81.6),
    "cvt_21": Published(82.5),
    "cvt_13_384": Published(83.0),
    "cvt_21_384": Published(83.3),
    "cvt_w24": Published(87.6, note="pretrained on ImageNet-22k"),
}
