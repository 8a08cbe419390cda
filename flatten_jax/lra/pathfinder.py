"""Pathfinder (Linsley et al., NeurIPS 2018; Kim et al., ICLR 2020): are the two marked ends those of one snake?

Two long snakes of strokes, and shorter ones that distract. Written after the description of Long Range Arena's sets.
A picture is a function of (size, difficulty, seed, index) alone, so that any part of a set can be made anywhere.
Nothing is drawn before both long snakes have found their way.
"""

from typing import NamedTuple

import numpy as np

from flatten_jax.lra.strokes import STYLES, Stamps, Style, stamps

DIFFICULTIES = {"easy": 6, "middle": 9, "hard": 14}  # strokes of a long snake; the arena's set is the hard one


class Scene(NamedTuple):
    """What a picture is made of.

    Attributes:
        image: uint8 (size, size).
        label: 1: the marks are on the two ends of one snake; 0: of two.
        snakes: uint8 (2, size, size), each long snake alone.
        marks: int64 (2, 2), rows and columns of the two marked ends.
        attempts: how many pairs of snakes were begun for this one.
    """

    image: np.ndarray
    label: int
    snakes: np.ndarray
    marks: np.ndarray
    attempts: int


def check(size: int, difficulty: str) -> None:
    """ValueError where there are no such pictures."""
    if size not in STYLES:
        raise ValueError(f"{size=} of Pathfinder must be one of {', '.join(map(str, STYLES))}")
    if difficulty not in DIFFICULTIES:
        raise ValueError(f"{difficulty=} of Pathfinder must be one of {', '.join(DIFFICULTIES)}")


def picture(size: int, difficulty: str, seed: int, index: int) -> tuple[np.ndarray, int]:
    """One picture of a set: (uint8 (size, size), label).

    Args:
        size: 32, 64 or 128.
        difficulty: "easy", "middle" or "hard".
        seed, index: two numbers of 0 or more; each index of a seed is a picture of its own.
    """
    made = scene(size, difficulty, seed, index)
    return made.image, made.label


def scene(size: int, difficulty: str, seed: int, index: int) -> Scene:
    """The same with its parts."""
    from flatten_jax.lra import walk  # here, so that only these pictures wait for Numba

    check(size, difficulty)
    style, strokes = STYLES[size], DIFFICULTIES[difficulty]
    state = np.random.SeedSequence([seed, index]).generate_state(1, np.uint64)
    label = int(walk.below(state, 2))
    drawn = stamps(style, style.margins[walk.below(state, len(style.margins))])
    short = strokes // 3
    paths = np.zeros((2, strokes, 3), np.int64)
    distractors = np.zeros((style.strokes_of_distractors // short, short, 3), np.int64)
    attempts, count = walk.walk(drawn, state, size, style.distance, paths, distractors)
    first = walk.below(state, 2)
    marks = np.array([paths[first, 0, 1:], paths[first if label else 1 - first, -1, 1:]])
    image, snakes = _draw(style, drawn, paths, distractors[:count], marks)
    return Scene(image, label, snakes, marks, attempts)


def _draw(
    style: Style, drawn: Stamps, paths: np.ndarray, distractors: np.ndarray, marks: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The picture, the largest of all layers, stretched to 0 ... 255; and the long snakes alone."""
    from flatten_jax.lra import walk

    snakes = np.zeros((2, style.size, style.size), np.float32)
    for layer, path in zip(snakes, paths, strict=True):
        for stroke, y, x in path:
            walk.stamp(layer, drawn.lines[stroke], y, x)
    image = np.zeros((style.size, style.size), np.float32)
    for stroke, y, x in distractors.reshape(-1, 3):
        walk.stamp(image, drawn.lines[stroke], y, x)
    image = np.maximum(image * style.contrast, snakes.max(axis=0) * (style.contrast * style.long_contrast)) / 255
    for y, x in marks:
        walk.stamp(image, drawn.marker, y, x)
    low, high = image.min(), image.max()
    return ((image - low) * (255 / (high - low)) + 0.5).astype(np.uint8), snakes.astype(np.uint8)
