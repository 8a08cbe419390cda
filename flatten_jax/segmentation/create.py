"""Segmenters by the name of their backbone."""

from collections.abc import Sequence
from typing import Any

from flatten_jax.models import create_model
from flatten_jax.models.create import model_options
from flatten_jax.segmentation.model import HEADS, K_POSITIONS, Segmenter

# Of the segmenter, not of its backbone.
_OWN = ("channels", "auxiliary", "dropout")
_SWIN_WINDOW = 7  # of the softmax stages of every published UperNet of Swin


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

    Args:
        name: of the backbone, one of `list_models()` whose levels have ever larger strides.
        head: "upernet", with an auxiliary head, or "semfpn".
        num_classes: channels of the logits.
        image_size: int or (height, width) of the pictures.
        k_position: the learned table on the keys of focused attention, which belongs to one grid: "none" (the default
            where there is such a table) leaves it out, as FLatten's dense models apparently did, so that no parameter
            of a FLatten-Swin belongs to an image size; "resize" has it, of the size of the grid.
        **options: of the backbone, as in `create_model`; and `channels`, `auxiliary`, `dropout` of `Segmenter`.
            `feature_norm` is on, but for PVT and PVTv2, as in their detection code. Softmax windows of Swin are 7.

    Raises:
        ValueError: as `create_model`; an unknown head; a backbone without a pyramid of maps.
    """
    if head not in HEADS:
        raise ValueError(f"{head=} must be one of {', '.join(HEADS)}")
    if k_position not in (None, *K_POSITIONS):
        raise ValueError(f"{k_position=} must be one of {', '.join(K_POSITIONS)}")
    size = (image_size,) * 2 if isinstance(image_size, int) else tuple(image_size)
    own = {key: options.pop(key) for key in _OWN if key in options}
    own.setdefault("auxiliary", head == "upernet")
    known = model_options(name, options.get("attn_type"))
    if "use_positional_encoding" in known:
        options.setdefault("use_positional_encoding", k_position == "resize")
    elif k_position is not None:
        raise ValueError(f"{k_position=} has no effect on {name}: it is an option of focused attention; leave it out")
    options.setdefault("feature_norm", not ("sr_ratios" in known))
    if "softmax_window_size" in known and "softmax" in str(known["attn_type"]):
        options.setdefault("softmax_window_size", _SWIN_WINDOW)
    backbone = create_model(name, image_size=size, features_only=True, **options)
    return Segmenter(backbone, head, num_classes, size, **own)
