"""Isotropic ConvNeXt: one grid of patches from the first block to the last, as in a ViT."""

from typing import ClassVar

import jax

from flatten_jax.models.backbone import Backbone
from flatten_jax.models.blocks import drop_path_rates, patch_grid
from flatten_jax.models.convnext import ConvNeXt, convnext_blocks
from flatten_jax.models.isotropic import Isotropic
from flatten_jax.models.published import Published
from flatten_jax.ops.convolution import Conv
from flatten_jax.ops.initializers import NORMAL


class IsotropicConvNeXt(Backbone):
    """Isotropic ConvNeXt (Liu et al., CVPR 2022, arXiv 2201.03545). It has no attention to exchange.

    The mean over the grid is normalised, not the map, as in `ConvNeXt`.

    Attributes: those of `Backbone`, and
        image_size: (height, width), each a multiple of `patch_size`.
        embed_dim, depth, patch_size: the architecture.
        layer_scale: initial value of the factors of the residuals; 0: there are none, as in the smaller two.
        out_indices: blocks, all of stride `patch_size`; by default the last of each quarter.
    """

    hallmark: ClassVar[str] = "blocks.0.dwconv.weight"

    attn_type: str = ""
    embed_dim: int = 384
    depth: int = 18
    patch_size: int = 16
    layer_scale: float = 0.0

    level_info = Isotropic.level_info
    default_indices = Isotropic.default_indices
    final_norm = ConvNeXt.final_norm
    pool = ConvNeXt.pool

    def rates(self) -> list[list[float]]:
        return drop_path_rates(self.drop_path, [self.depth])

    def levels(self, images: jax.Array, train: bool, count: int) -> list[jax.Array]:
        patch_grid(self.image_size, self.patch_size)
        size = self.patch_size
        x = Conv(self.embed_dim, size, size, conv_init=NORMAL, dtype=self.dtype, name="stem")(images)
        scan = self.scan and not self.features_only  # maps of blocks in between are not to be had from a loop
        return convnext_blocks(self, x, train, self.rates()[0][:count], "blocks_", self.layer_scale, scan)


FAMILY = IsotropicConvNeXt
MODELS = {
    "convnext_isotropic_s": dict(embed_dim=384, depth=18),
    "convnext_isotropic_b": dict(embed_dim=768, depth=18),
    "convnext_isotropic_l": dict(embed_dim=1024, depth=36, layer_scale=1e-6),
}
ALIASES = {f"convnext_isotropic_{size}": f"convnext_isotropic_{size[0]}" for size in ("small", "base", "large")}
PUBLISHED = {
    "convnext_isotropic_s": Published(78.7),
    "convnext_isotropic_b": Published(82.0),
}
