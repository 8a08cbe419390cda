"""Fast decoding of ordinary JPEGs by simplejpeg: the pixels of Pillow, since both are libjpeg-turbo.

What is not ordinary, or makes libjpeg warn, is left to Pillow: the functions return None.
"""

import math

import numpy as np
import simplejpeg
from PIL import Image

# Decoded below the last row that is wanted: the chroma of that row is interpolated with the next row of chroma.
CONTEXT_ROWS = 8


def size(image: bytes | np.ndarray) -> tuple[int, int] | None:
    """(height, width) of a JPEG for simplejpeg. None: CMYK, no JPEG, or so large that Pillow has to judge it."""
    if isinstance(image, np.ndarray) or not image.startswith(b"\xff\xd8\xff"):
        return None
    try:
        height, width, colors, _ = simplejpeg.decode_jpeg_header(image)
    except (ValueError, KeyError):  # KeyError: a colour space or a subsampling that simplejpeg has no name for
        return None
    if colors not in ("YCbCr", "RGB", "Gray") or height * width > (Image.MAX_IMAGE_PIXELS or math.inf):
        return None
    return height, width


def decode(image: bytes, reduction: int = 1, rows: int | None = None) -> np.ndarray | None:
    """RGB pixels (height, width, 3) of a file that `size` accepts; None when libjpeg fails, or warns.

    Args:
        reduction: 1, 2, 4 or 8; both sides are divided by it and rounded up.
        rows: of the whole picture, from the top; the result may end anywhere below them.
    """
    height, width = size(image)
    upper = None if rows is None or rows + CONTEXT_ROWS >= height else _ending_after(image, rows + CONTEXT_ROWS)
    if upper is not None:
        image, height = upper, rows + CONTEXT_ROWS
    height, width = (-(-side // reduction) for side in (height, width))
    try:
        return simplejpeg.decode_jpeg(
            image, min_height=height, min_width=width, min_factor=reduction, strict=upper is None
        )
    except ValueError:
        return None


def _ending_after(image: bytes, rows: int) -> bytes | None:
    """The file with `rows` for the height in its header: libjpeg stops there, and only warns about the rest.

    With the warning, that of a cut file is lost: so it has to end in the marker of a JPEG's end, which nothing in the
    compressed data can look like. None: no such end, or a file of several scans, in which every scan has all rows.
    """
    if not image.endswith(b"\xff\xd9"):
        return None
    at, frame = 2, None
    while at + 10 < len(image) and image[at] == 0xFF:
        marker = image[at + 1]
        if marker in (0xC0, 0xC1):  # the frame: length (2 bytes), precision, height (2), width (2), components
            frame = at
        elif marker == 0xDA:  # the first scan: length (2), components
            if frame is None or image[at + 4] != image[frame + 9]:
                return None
            return image[: frame + 5] + rows.to_bytes(2, "big") + image[frame + 7 :]
        at += 2 + int.from_bytes(image[at + 2 : at + 4], "big")
    return None
