"""Class ids as pictures: a colour for each class, beside and over the picture itself, with a legend."""

import colorsys
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from flatten_jax.segmentation.masks import IGNORED

_GOLDEN = 0.618033988749895  # of a turn from hue to hue: any number of them lie apart
_LIGHTNESS = (0.5, 0.7, 0.32)
_OVER = 0.55  # of the colour, over the picture
_GAP, _LINE, _FONT = 8, 20, 14  # pixels
_SMALLEST = 320  # a picture is shown as wide at least


def colours(count: int) -> np.ndarray:
    """uint8 (count, 3): neighbours differ in hue and in lightness, and a class has the same colour in any set."""
    rgb = [colorsys.hls_to_rgb(i * _GOLDEN % 1, _LIGHTNESS[i % 3], 0.65) for i in range(count)]
    return np.rint(255 * np.array(rgb)).astype(np.uint8).reshape(count, 3)


def colour_map(ids: np.ndarray, count: int) -> np.ndarray:
    """Class ids (height, width) -> uint8 (height, width, 3); IGNORED is black."""
    table = np.zeros((IGNORED + 1, 3), np.uint8)
    table[:count] = colours(count)
    return table[ids]


def shares(ids: np.ndarray) -> list[tuple[int, float]]:
    """(class, share of the labelled pixels), largest first."""
    counts = np.bincount(ids.ravel(), minlength=IGNORED + 1)[:IGNORED]
    found = np.flatnonzero(counts)
    return [(int(i), float(counts[i] / counts.sum())) for i in sorted(found, key=lambda i: -counts[i])]


def panel(picture: np.ndarray, ids: np.ndarray, class_names: Sequence[str]) -> Image.Image:
    """The picture, its colour map, and that over the picture, side by side; below them what the colours mean.

    Args:
        picture: uint8 (height, width, 3).
        ids: class ids (height, width).
        class_names: one for each class.
    """
    coloured = colour_map(ids, len(class_names))
    over = np.rint(_OVER * coloured + (1 - _OVER) * picture).astype(np.uint8)
    over = np.where((ids == IGNORED)[..., None], picture, over)
    scale = max(1, -(-_SMALLEST // picture.shape[1]))
    parts = [np.kron(part, np.ones((scale, scale, 1), np.uint8)) for part in (picture, coloured, over)]
    height, width = parts[0].shape[:2]
    entries = [f"{class_names[i]}  {100 * share:.1f} %" for i, share in shares(ids)]
    swatches = colours(len(class_names))
    font = ImageFont.load_default(_FONT)
    column = _LINE + 2 * _GAP + round(max((font.getlength(entry) for entry in entries), default=0))
    whole = 3 * width + 2 * _GAP
    columns = max(1, whole // column)
    lines = -(-len(entries) // columns)
    page = Image.new("RGB", (max(whole, column), height + _GAP + lines * _LINE + _GAP), "white")
    for i, part in enumerate(parts):
        page.paste(Image.fromarray(part), (i * (width + _GAP), 0))
    draw = ImageDraw.Draw(page)
    for n, ((i, _), entry) in enumerate(zip(shares(ids), entries, strict=True)):
        x, y = n // lines * column, height + _GAP + n % lines * _LINE
        draw.rectangle((x, y + 2, x + _LINE - 4, y + _LINE - 3), fill=tuple(swatches[i].tolist()), outline="black")
        draw.text((x + _LINE + 2, y + 1), entry, fill="black", font=font)
    return page
