"""A backbone with a head: pictures in, logits of every fourth pixel out."""

from collections.abc import Mapping
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from flatten_jax.attention.contract import Grid
from flatten_jax.models.backbone import Backbone
from flatten_jax.models.images import check_images
from flatten_jax.segmentation.heads import FPN, FCNHead, FPNHead, UPerHead
from flatten_jax.segmentation.resize import bilinear

HEADS = ("upernet", "semfpn")
BACKBONE = "backbone"


class Segmenter(nn.Module):
    """A backbone of dense prediction and a head over its maps.

    `model.apply(variables, images, train=False)` gives logits (B, height / 4, width / 4, num_classes), float32, sides
        rounded up, which is the resolution of the first map. With train=True and an auxiliary head a tuple: these, and
        the logits of the auxiliary head at stride 16. `resize_logits` makes them of another size.

    Parameters are named as in mmsegmentation: `backbone.`, `neck.`, `decode_head.`, `auxiliary_head.`.

    Attributes:
        backbone: a model with features_only=True. Where its image_size is larger, images are padded with zeros at the
            right and the bottom.
        head: "upernet" (UPerHead) or "semfpn" (FPN, then FPNHead).
        num_classes: channels of the logits.
        image_size: (height, width) of the pictures.
        channels: width of the head; 0: that of the published ones, 512 for upernet and 128 for semfpn.
        auxiliary: have the auxiliary head, on the last map but one.
        dropout: share of the channels that are dropped before the classifiers, in training.
    """

    # Where the layers are that belong to the classes: what `new_head` makes new.
    heads: ClassVar[tuple[tuple[str, ...], ...]] = (("decode_head", "conv_seg"), ("auxiliary_head", "conv_seg"))

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
        check_images(images, self.image_size)
        missing = [whole - side for whole, side in zip(self.backbone.image_size, self.image_size, strict=True)]
        maps = self.backbone(jnp.pad(images, ((0, 0), *((0, n) for n in missing), (0, 0))), train)
        strides = tuple(info["reduction"] for info in self.backbone.feature_info)
        options: dict[str, Any] = dict(dropout=self.dropout, dtype=self.dtype)
        width = {"channels": self.channels} if self.channels else {}

        def within(logits: jax.Array, stride: int) -> jax.Array:
            height, width = (-(-side // stride) for side in self.image_size)
            return logits[:, :height, :width]

        if self.head == "upernet":
            logits = UPerHead(self.num_classes, **width, **options, name="decode_head")(maps, train)
        else:
            levels = FPN(dtype=self.dtype, name="neck")(maps)
            logits = FPNHead(self.num_classes, **width, strides=strides, **options, name="decode_head")(levels, train)
        logits = within(logits, strides[0])
        if not self.auxiliary or not (train or self.is_initializing()):
            return logits
        beside = FCNHead(self.num_classes, **options, name="auxiliary_head")(maps[-2], train)
        return (logits, within(beside, strides[-2])) if train else logits

    def at_size(self, image_size: Grid) -> "Segmenter":
        """This model for pictures of another size; its variables may have to be resampled, see `variables_at`.

        Swin pads pictures itself; another backbone is made for the next larger size of whole strides.
        """
        return self.clone(backbone=backbone_at(self.backbone, tuple(image_size)), image_size=tuple(image_size))

    def looped(self) -> "Segmenter":
        """As `Backbone.looped`."""
        return self.clone(backbone=self.backbone.looped())

    # What `weights` asks of a model.

    def original(self, name: str) -> str:
        """PyTorch's name of an entry that would be called `name` by the names of our modules."""
        prefix, _, rest = name.partition(".")
        return f"{prefix}.{self.backbone.original(rest)}" if prefix == BACKBONE else name

    def torch_buffers(self) -> dict[str, np.ndarray]:
        """As `Backbone.torch_buffers`."""
        return {f"{BACKBONE}.{name}": array for name, array in self.backbone.torch_buffers().items()}

    def torch_copies(self, entries: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """As `Backbone.torch_copies`."""
        start = f"{BACKBONE}."
        own = {name.removeprefix(start): array for name, array in entries.items() if name.startswith(start)}
        return {f"{start}{name}": array for name, array in self.backbone.torch_copies(own).items()}


def backbone_of(model: nn.Module) -> Backbone:
    """A backbone, or that of a segmenter."""
    return model.backbone if isinstance(model, Segmenter) else model


def backbone_at(backbone: Backbone, image_size: Grid) -> Backbone:
    """A backbone for pictures of this size, if it pads them itself, else for the next size of whole strides."""
    stride = 1 if backbone.pads else int(backbone.level_info()[-1]["reduction"])
    return backbone.clone(image_size=tuple(-(-side // stride) * stride for side in image_size))


def resize_logits(logits: jax.Array, size: Grid) -> jax.Array:
    """(B, height, width, classes) -> (B, *size, classes), bilinear, half-pixel centres, never antialiased."""
    return bilinear(logits, size)
