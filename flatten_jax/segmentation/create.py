"""Segmenters by the name of their backbone."""

import itertools
from collections.abc import Sequence
from typing import Any

import flax.linen as nn

from flatten_jax.attention import pattern, takes_bias
from flatten_jax.models.backbone import Backbone
from flatten_jax.models.create import create_model, model_options
from flatten_jax.segmentation.model import HEADS, Segmenter, backbone_at

K_POSITIONS = ("none", "resize")
_OWN = ("channels", "auxiliary", "dropout")  # of the segmenter, not of its backbone
_STRIDE = 32  # of the last map, in every family that has one so coarse
_SWIN_WINDOW = 7  # of the softmax stages in every published UperNet of Swin


def create_segmenter(
    name: str,
    head: str = "upernet",
    num_classes: int = 150,
    image_size: int | Sequence[int] = (512, 512),
    *,
    k_position: str | None = None,
    **options: Any,
) -> Segmenter:
    """A backbone with a head, as a Linen module: `logits = model.apply(variables, images)`, see `Segmenter`.

    Variables come from `flatten_jax.init`, or from `load_weights`, which takes segmenters of mmsegmentation, and
    classifiers, whose head is left and whose position tables are resampled.

    Args:
        name: of the backbone, one of `list_models()` whose maps become coarser from level to level.
        head: "upernet", with an auxiliary head, or "semfpn".
        num_classes: channels of the logits.
        image_size: int or (height, width) of the pictures.
        k_position: of focused attention, the learned table on the keys, which belongs to one grid. "none", the default,
            leaves it out, as FLatten's dense models apparently did: then no parameter of a FLatten-Swin depends on the
            image size. "resize" has it, of the size of the grid.
        **options: of the backbone, as in `create_model`; and `channels`, `auxiliary`, `dropout` of `Segmenter`.
            `feature_norm` is on, but for PVT and PVTv2, as in their detection code. Softmax windows of Swin are 7.

    Raises:
        ValueError: as `create_model`; an unknown head; a backbone whose maps are no pyramid.
    """
    if head not in HEADS:
        raise ValueError(f"{head=} must be one of {', '.join(HEADS)}")
    if k_position not in (None, *K_POSITIONS):
        raise ValueError(f"{k_position=} must be one of {', '.join(K_POSITIONS)}")
    if num_classes < 1:
        raise ValueError(f"{num_classes=} must be at least 1")
    size = (image_size,) * 2 if isinstance(image_size, int) else tuple(image_size)
    own = {"auxiliary": head == "upernet", **{key: options.pop(key) for key in _OWN if key in options}}
    options = {**_defaults(name, k_position, options), **options}
    whole = tuple(-(-side // _STRIDE) * _STRIDE for side in size)  # which every backbone takes
    backbone = _pyramid(name, create_model(name, features_only=True, image_size=whole, **options))
    return Segmenter(backbone_at(backbone, size), head, num_classes, size, **own)


def create(name: str, **options: Any) -> nn.Module:
    """A model by its name; a segmenter where a head stands before that, "upernet_flatten_swin_t"."""
    head, backbone = split(name)
    return create_segmenter(backbone, head, **options) if head else create_model(name, **options)


def split(name: str) -> tuple[str, str]:
    """(head or "", name of the model) of a name that `create` takes."""
    head, _, backbone = name.partition("_")
    return (head, backbone) if head in HEADS else ("", name)


def _defaults(name: str, k_position: str | None, options: dict[str, Any]) -> dict[str, Any]:
    """Options of the backbone that are otherwise than a classifier's."""
    known = model_options(name, options.get("attn_type"))
    chosen: dict[str, Any] = {"feature_norm": "sr_ratios" not in known}
    if "use_positional_encoding" in known:
        chosen["use_positional_encoding"] = k_position == "resize"
    elif k_position is not None:
        raise ValueError(f"{k_position=} has no effect on {name}: it is an option of focused attention; leave it out")
    if "softmax_window_size" in known:
        stages = pattern(known["attn_type"], options.get("depths", known["depths"]))
        if any(takes_bias(attention) for attentions in stages for attention in attentions):
            chosen["softmax_window_size"] = _SWIN_WINDOW
    return chosen


def _pyramid(name: str, backbone: Backbone) -> Backbone:
    """The backbone with its maps from stride 4 on; ValueError unless each has half the sides of the one before."""
    if not backbone.out_indices and backbone.feature_info[0]["reduction"] < 4:
        coarse = tuple(info["index"] for info in backbone.feature_info if info["reduction"] >= 4)
        backbone = backbone.clone(out_indices=coarse)
    strides = [info["reduction"] for info in backbone.feature_info]
    if len(strides) < 2 or any(2 * fine != coarse for fine, coarse in itertools.pairwise(strides)):
        raise ValueError(
            f"{name} has maps of strides {', '.join(f'{s:g}' for s in strides)}: a head needs strides "
            "that double, as in swin, pvt, cswin, mila and others"
        )
    return backbone
