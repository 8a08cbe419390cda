"""PVTv2 as in the FLatten release: overlapping patches, a convolution in the MLP, a norm after every stage."""

from typing import ClassVar

import jax

from flatten_jax.models.blocks import DWConv, PatchEmbed
from flatten_jax.models.published import WEIGHTS, Published
from flatten_jax.models.pvt import PVT
from flatten_jax.ops.initializers import FAN_OUT_CONV, ConvInit
from flatten_jax.ops.norm import LayerNorm


class PVTv2(PVT):
    """PVTv2 (Wang et al., 2022). Attributes: those of `PVT`; any image_size, the convolutions pad.

    The maps of features_only are those after the norm of their stage, so there is no further `feature_norm`.
    """

    level_name: ClassVar[str] = "norm{1}"
    conv_init: ClassVar[ConvInit] = FAN_OUT_CONV

    def idle_options(self) -> set[str]:
        return super().idle_options() | {"feature_norm"}

    def levels(self, images: jax.Array, train: bool, count: int) -> list[jax.Array]:
        x, levels = images, []
        for i in range(count):
            size, stride = (7, 4) if i == 0 else (3, 2)
            x = PatchEmbed(
                self.embed_dims[i],
                size,
                stride,
                padding=size // 2,
                conv_init=self.conv_init,
                dtype=self.dtype,
                name=f"patch_embed{i + 1}",
            )(x)
            x = self.blocks(x, i, train, mlp_local=DWConv)
            x = LayerNorm(epsilon=self.epsilon, dtype=self.dtype, name=f"norm{i + 1}")(x)
            levels.append(x)
        return levels

    def final_norm(self, x: jax.Array) -> jax.Array:
        return x


_SIZES = {
    "b0": dict(depths=(2, 2, 2, 2), embed_dims=(32, 64, 160, 256)),
    "b1": dict(depths=(2, 2, 2, 2)),
    "b2": dict(depths=(3, 4, 6, 3)),
    "b3": dict(depths=(3, 4, 18, 3)),
    "b4": dict(depths=(3, 8, 27, 3)),
    "b5": dict(depths=(3, 6, 40, 3), mlp_ratios=(4, 4, 4, 4)),
}
FAMILY = PVTv2
MODELS = {
    **{f"flatten_pvt_v2_{size}": dict(own, attn_type="focused") for size, own in _SIZES.items()},
    **{f"pvt_v2_{size}": dict(own, attn_type="softmax") for size, own in _SIZES.items()},
}
ALIASES: dict[str, str] = {}
PUBLISHED = {
    "flatten_pvt_v2_b0": Published(71.1, 71.098, WEIGHTS.format("5d1f01532b104da28e7b")),
    "flatten_pvt_v2_b1": Published(79.5),
    "flatten_pvt_v2_b2": Published(82.5),
    "flatten_pvt_v2_b3": Published(83.7),
    "flatten_pvt_v2_b4": Published(84.0),
    "pvt_v2_b1": Published(78.7),
    "pvt_v2_b2": Published(82.0),
}
