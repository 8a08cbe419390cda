"""Pixels of training pictures: a part of a resized picture, and photometric distortion, compiled by Numba."""

from typing import NamedTuple

import numba
import numpy as np


class Distortion(NamedTuple):
    """What `distort` does, in this order; the values here change nothing.

    Attributes:
        brightness: added.
        contrast_first: a factor of all channels, before saturation and hue are changed.
        saturation: a factor of the saturation.
        hue: added, in units of two degrees, as 8 bits hold it.
        contrast_last: a factor of all channels.
    """

    brightness: float = 0.0
    contrast_first: float = 1.0
    saturation: float = 1.0
    hue: int = 0
    contrast_last: float = 1.0

    @staticmethod
    def drawn(rng: np.random.Generator) -> "Distortion":
        """SSD's, with mmsegmentation's numbers: each with probability 1/2, contrast at one of the two places."""

        def sometimes(low: float, high: float, otherwise: float) -> float:
            use, value = rng.random() < 0.5, rng.uniform(low, high)
            return float(value) if use else otherwise

        brightness = sometimes(-32, 32, 0.0)
        contrast, first = sometimes(0.5, 1.5, 1.0), rng.random() < 0.5
        saturation = sometimes(0.5, 1.5, 1.0)
        use, hue = rng.random() < 0.5, int(rng.integers(-18, 18))
        return Distortion(
            brightness,
            contrast if first else 1.0,
            saturation,
            hue if use else 0,
            1.0 if first else contrast,
        )


def distort(pixels: np.ndarray, distortion: Distortion) -> np.ndarray:
    """uint8 (height, width, 3) -> the same, distorted; after each operation values are 8 bits again, rounded down."""
    return _distort(
        pixels,
        np.float32(distortion.brightness),
        np.float32(distortion.contrast_first),
        np.float32(distortion.saturation),
        distortion.hue,
        np.float32(distortion.contrast_last),
    )


def resized(pixels: np.ndarray, size: tuple[int, int], box: tuple[int, int, int, int] | None = None) -> np.ndarray:
    """A box of the picture as it would be if it was resized, bilinear with half-pixel centres, without antialiasing.

    Args:
        pixels: uint8 (height, width, 3).
        size: (height, width) of the whole resized picture.
        box: (top, left, height, width) of the part that is wanted, inside of `size`; None: all.

    Returns:
        uint8 (box height, box width, 3).
    """
    top, left, height, width = box or (0, 0, *size)
    return _bilinear(
        np.ascontiguousarray(pixels), pixels.shape[0] / size[0], pixels.shape[1] / size[1], top, left, height, width
    )


def resized_mask(mask: np.ndarray, size: tuple[int, int], box: tuple[int, int, int, int] | None = None) -> np.ndarray:
    """The same of a mask (height, width): each pixel has the id of the one that its centre falls into."""
    top, left, height, width = box or (0, 0, *size)
    rows = np.floor((np.arange(top, top + height) + 0.5) * (mask.shape[0] / size[0])).astype(np.int64)
    columns = np.floor((np.arange(left, left + width) + 0.5) * (mask.shape[1] / size[1])).astype(np.int64)
    return mask[np.minimum(rows, mask.shape[0] - 1)[:, None], np.minimum(columns, mask.shape[1] - 1)[None]]


@numba.njit(nogil=True)
def _bilinear(pixels, down, across, top, left, height, width):
    rows, columns = pixels.shape[0], pixels.shape[1]
    result = np.empty((height, width, 3), np.uint8)
    for y in range(height):
        v = min(max((top + y + 0.5) * down - 0.5, 0.0), rows - 1.0)
        upper = int(v)
        lower, b = min(upper + 1, rows - 1), np.float32(v - upper)
        for x in range(width):
            u = min(max((left + x + 0.5) * across - 0.5, 0.0), columns - 1.0)
            west = int(u)
            east, a = min(west + 1, columns - 1), np.float32(u - west)
            for c in range(3):
                above = pixels[upper, west, c] + a * (np.float32(pixels[upper, east, c]) - pixels[upper, west, c])
                below = pixels[lower, west, c] + a * (np.float32(pixels[lower, east, c]) - pixels[lower, west, c])
                result[y, x, c] = np.uint8(above + b * (below - above) + np.float32(0.5))
    return result


@numba.njit(nogil=True)
def _as_byte(x):
    return int(min(max(x, np.float32(0)), np.float32(255)))


@numba.njit(nogil=True)
def _hsv(r, g, b):
    """Of 8 bits each: hue in [0, 180), saturation and value in [0, 255]."""
    value, least = max(r, g, b), min(r, g, b)
    spread = value - least
    if spread == 0:
        return 0, 0, value
    if value == r:
        sextant = (g - b) / spread
    elif value == g:
        sextant = (b - r) / spread + 2
    else:
        sextant = (r - g) / spread + 4
    hue = int(np.floor(30 * sextant + 0.5))
    return (hue + 180) % 180, int(255 * spread / value + 0.5), value


@numba.njit(nogil=True)
def _rgb(hue, saturation, value):
    sextant = int(hue // 30)
    rest, s = hue / 30 - sextant, saturation / 255
    p = int(value * (1 - s) + 0.5)
    q = int(value * (1 - s * rest) + 0.5)
    t = int(value * (1 - s * (1 - rest)) + 0.5)
    if sextant == 0:
        return value, t, p
    if sextant == 1:
        return q, value, p
    if sextant == 2:
        return p, value, t
    if sextant == 3:
        return p, q, value
    if sextant == 4:
        return t, p, value
    return value, p, q


@numba.njit(nogil=True)
def _distort(pixels, brightness, contrast_first, saturation, hue, contrast_last):
    result = np.empty_like(pixels)
    for y in range(pixels.shape[0]):
        for x in range(pixels.shape[1]):
            r = _as_byte(_as_byte(pixels[y, x, 0] + brightness) * contrast_first)
            g = _as_byte(_as_byte(pixels[y, x, 1] + brightness) * contrast_first)
            b = _as_byte(_as_byte(pixels[y, x, 2] + brightness) * contrast_first)
            if saturation != 1:
                h, s, v = _hsv(r, g, b)
                r, g, b = _rgb(h, _as_byte(s * saturation), v)
            if hue != 0:
                h, s, v = _hsv(r, g, b)
                r, g, b = _rgb((h + hue + 180) % 180, s, v)
            result[y, x, 0] = _as_byte(r * contrast_last)
            result[y, x, 1] = _as_byte(g * contrast_last)
            result[y, x, 2] = _as_byte(b * contrast_last)
    return result
