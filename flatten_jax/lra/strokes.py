"""What Pathfinder's snakes are drawn with: every stroke and what it occupies, once for each of its directions.

A stroke starts at one of 360 whole degrees, and goes on to one of the few pixels around a pivot. So a picture needs a
few hundred small stamps, drawn by Pillow when the first picture is made, and the pictures are made of them alone.
"""

import functools
import math
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

DEGREES = 360  # directions of a first stroke: the first stamps


class Style(NamedTuple):
    """How the pictures of one size are drawn: the parameters of Long Range Arena's scripts, lengths in pixels.

    Attributes:
        size: side of the picture.
        length, thickness: of a stroke.
        margins: what is left free around strokes; one is drawn for each picture.
        distance: between the first ends of the two long snakes.
        radius: of the discs that mark two ends.
        continuity: how straight snakes are; a turn of 90 degrees over this never happens.
        strokes_of_distractors: of all of them together.
        contrast: of strokes.
        long_contrast: of the strokes of the two long snakes, a factor more.
        antialias: strokes are drawn so many times as large.
    """

    size: int
    length: int
    thickness: float
    margins: tuple[int, ...]
    distance: int
    radius: float
    continuity: float
    strokes_of_distractors: int
    contrast: float
    long_contrast: float = 1.0
    antialias: int = 2


STYLES = {
    32: Style(32, 2, 0.5, (1,), 7, 1.5, 1.0, 20, 2.0, 0.75),
    64: Style(64, 5, 1.0, (1,), 12, 2.5, 1.8, 22, 0.8),
    128: Style(128, 5, 1.5, (2, 3), 20, 3.0, 1.8, 35, 0.9),
}


class Stamps(NamedTuple):
    """All that is drawn with a margin, A = 360 + K directions: first strokes, then strokes that end at a candidate.

    Attributes:
        lines: float32 (A, n, n) from 0 to 255, the stroke around its given end, antialiased.
        occupied: float32 (A, n, n) from 0 to 1: the stroke with the margin around it.
        room: bool (360, 2 r + 1, 2 r + 1), r = length + margin: what has to be free around a first stroke's tail.
        reach: int64 (360, 4), rows and columns from ... to of `room`, relative to the tail.
        begins: bool (360,), the directions of first strokes that there are.
        heads: float64 (360, 2), the way from a first stroke's tail to its head; a place is rounded up (`moved`).
        backs: float64 (360, 2), from there back to where it turned from, its pivot.
        steps: float64 (A, 2), from the last pivot to the next one.
        candidates: int64 (K, 2): from a pivot to the pixels where the next stroke may end.
        weights: float64 (A, K): how likely each is after a stroke, as far as the turn goes.
        disc: int64 (D, 2), the pixels within the margin of one.
        marker: float32 (w, w), the disc that marks an end.
    """

    lines: np.ndarray
    occupied: np.ndarray
    room: np.ndarray
    reach: np.ndarray
    begins: np.ndarray
    heads: np.ndarray
    backs: np.ndarray
    steps: np.ndarray
    candidates: np.ndarray
    weights: np.ndarray
    disc: np.ndarray
    marker: np.ndarray


@functools.lru_cache(maxsize=8)
def stamps(style: Style, margin: int) -> Stamps:
    """The stamps of a style, drawn once in a process."""
    first = np.arange(-180, 180) * np.pi / 180
    candidates = _circle(style.length + margin)
    towards = np.arctan2(candidates[:, 0], candidates[:, 1])
    # A later stroke is drawn from its end back.
    drawn = [_stroke(style, margin, angle) for angle in (*first, *_opposite(towards))]
    lines, occupied = (np.stack(pictures) for pictures in zip(*drawn, strict=True))
    room = _room(style, margin, occupied[:DEGREES])
    reach = [[rows.min(), rows.max(), columns.min(), columns.max()] for rows, columns in map(np.nonzero, room)]
    reach = np.array(reach) - (style.length + margin)
    corners = [room[:, rows, columns].any(axis=(1, 2)) for rows, columns in _quadrants(room.shape[1] // 2)]

    angles = np.concatenate([first, towards])
    turns = np.abs(angles[:, None] - towards[None])
    turns = np.minimum(np.minimum(turns, 2 * np.pi - turns) * style.continuity, np.pi / 2)
    return Stamps(
        lines=lines.astype(np.float32),
        occupied=(occupied / np.float32(255)).astype(np.float32),
        room=room,
        reach=reach,
        begins=np.all(corners, axis=0),
        heads=_ways(first, style.length),
        backs=_ways(_opposite(first), style.length + margin),
        steps=_ways(angles, style.length + 2 * margin),
        candidates=candidates,
        weights=np.maximum(np.cos(turns), 0) ** 2,
        disc=_disc(margin),
        marker=_marker(style),
    )


def _room(style: Style, margin: int, occupied: np.ndarray) -> np.ndarray:
    """What the original dilates the occupied pixels with, to find where a first stroke may have its tail.

    It holds what the stroke occupies wholly, one pixel too far down and to the right, cut off at the margin there. The
    dilation gives pixels at the border no value if all of this lies outside for them, and then no place is found. So
    first strokes have only the directions, up and to the left, with which it reaches into all four quadrants.
    """
    start, side = math.ceil(style.thickness) - 1, 2 * (style.length + margin) + 1
    return (occupied == 255)[:, start : start + side, start : start + side]


def _quadrants(middle: int) -> list[tuple[slice, slice]]:
    before, behind = slice(middle + 1), slice(middle, None)
    return [(rows, columns) for rows in (before, behind) for columns in (before, behind)]


def _opposite(angles: np.ndarray) -> np.ndarray:
    return np.where(angles < 0, angles + np.pi, angles - np.pi)


def _ways(angles: np.ndarray, distance: float) -> np.ndarray:
    """(down, right) of a distance in pixels, (A, 2), the same on every machine.

    What should be 0 stays what sines give, 5e-16 say: rounded up after it is added to a place near the border, it is a
    pixel, in the original and here.
    """
    way = distance * np.stack([np.sin(angles), np.cos(angles)], axis=1)
    return np.where(np.abs(way) < 1e-9, way, np.round(way, 12))


def _circle(radius: int) -> np.ndarray:
    """The pixels (K, 2) that a circle around a pixel goes through, at steps of one pixel."""
    angles = np.deg2rad(np.arange(0, 360, 360 / (2 * np.pi * radius)))
    way = radius * np.stack([np.sin(angles), np.cos(angles)], axis=1)
    return np.unique(np.floor(way + 1e-9).astype(np.int64), axis=0)


def _disc(radius: int) -> np.ndarray:
    y, x = np.indices((2 * radius + 1, 2 * radius + 1)) - radius
    return np.argwhere(y * y + x * x <= radius * radius) - radius


def _stroke(style: Style, margin: int, angle: float) -> tuple[np.ndarray, np.ndarray]:
    """A stroke from the centre of a picture at an angle, and what it occupies: uint8 (n, n) both."""
    scale, half = style.antialias, style.length + math.ceil(style.thickness) + margin
    centre = half * scale
    down, right = np.ceil(centre + _ways(np.array([angle]), style.length * scale)[0])
    large = Image.new("L", (2 * centre + 1, 2 * centre + 1))
    width = round(style.thickness * scale)
    ImageDraw.Draw(large).line([(centre, centre), (int(right), int(down))], fill=255, width=width)
    pixels, reach = np.asarray(large), margin * scale
    padded = np.pad(pixels, reach)
    offsets = _disc(reach) + reach
    wide = np.max([padded[y : y + len(pixels), x : x + len(pixels)] for y, x in offsets], axis=0)
    small = (2 * half + 1, 2 * half + 1)
    return tuple(np.asarray(p.resize(small, Image.Resampling.LANCZOS)) for p in (large, Image.fromarray(wide)))


def _marker(style: Style) -> np.ndarray:
    """The antialiased disc around an end, float32 (w, w) from 0 to 1."""
    half = math.ceil(style.radius) + 3  # as far as the filter reaches
    side, scale = 2 * half, style.antialias
    y, x = np.indices((side * scale, side * scale)) - half * scale
    inside = y * y + x * x <= (style.radius * scale) ** 2
    picture = Image.fromarray(np.where(inside, np.uint8(255), np.uint8(0)))
    return np.asarray(picture.resize((side, side), Image.Resampling.LANCZOS), np.float32) / 255
