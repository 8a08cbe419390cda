"""A backbone with a head: pictures in, logits of every fourth pixel out."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from flatten_jax.attention.contract import Grid
from flatten_jax.models.backbone import Backbone
from flatten_jax.segmentation.heads import FPN, FCNHead, FPNHead, UPerHead
from flatten_jax.segmentation.resize import bilinear

HEADS = ("upernet", "semfpn")
K_POSITIONS = ("none", "resize")


class Segmenter(nn.Module):
    """A backbone of dense prediction and a head over its maps.

    `model.apply(variables, images, train=False)` gives logits (B, height / 4, width / 4, num_classes), float32, at the
    resolution of the first map. With train=True and an auxiliary head a tuple: these, and the logits of the auxiliary
    head at stride 16. `resize_logits` makes them of another size.

    Parameters are named as in mmsegmentation: `backbone.`, `neck.`, `decode_head.`, `auxiliary_head.`.

    Attributes:
        backbone: a model with features_only=True.
        head: "upernet" (UPerHead) or "semfpn" (FPN, then FPNHead).
        num_classes: channels of the logits.
        image_size: (height, width) of the pictures.
        channels: width of the head; 0: that of the published ones, 512 for upernet and 128 for semfpn.
        auxiliary: have the auxiliary head, on the last map but one.
        dropout: of channels before the classifiers.
    """

    backbone: Backbone
    head: str = "upernet"
    num_classes: int = 150
    image_size: Grid = (512, 512)
    channels: int = 0
    auxiliary: bool = True
    dropout: float = 0.1

    @property
    def dtype(self) -> jnp.dtype | None:
        return self.backbone.dtype

    @property
    def no_weight_decay(self) -> tuple[str, ...]:
        return self.backbone.no_weight_decay

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array | tuple[jax.Array, jax.Array]:
        """images: (B, height, width, 3), normalised -> logits: see the class."""
        maps = self.backbone(images, train)
        options: dict[str, Any] = dict(dropout=self.dropout, dtype=self.dtype)
        width = {"channels": self.channels} if self.channels else {}
        if self.head == "upernet":
            logits = UPerHead(self.num_classes, **width, **options, name="decode_head")(maps, train)
        else:
            strides = tuple(info["reduction"] for info in self.backbone.feature_info)
            levels = FPN(dtype=self.dtype, name="neck")(maps, train)
            logits = FPNHead(self.num_classes, **width, strides=strides, **options, name="decode_head")(levels, train)
        if not self.auxiliary or not (train or self.is_initializing()):
            return logits
        beside = FCNHead(self.num_classes, **options, name="auxiliary_head")(maps[-2], train)
        return (logits, beside) if train else logits


def resize_logits(logits: jax.Array, size: Grid) -> jax.Array:
    """(B, height, width, classes) -> (B, *size, classes), bilinear, half-pixel centres, never antialiased."""
    return bilinear(logits, size)
