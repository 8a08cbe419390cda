"""Pathfinder's pictures: determined by their index, told by their statistics, labelled by what is connected."""

import numpy as np
import pytest

from flatten_jax.lra import pathfinder
from flatten_jax.lra.strokes import STYLES, stamps

# Mean, standard deviation and share of lit pixels of pictures of 32 px, as the original draws them.
STATISTICS = {"easy": (12.8, 43.0, 0.222), "middle": (15.6, 46.1, 0.271), "hard": (20.1, 49.9, 0.356)}
SAMPLE = 40


@pytest.mark.parametrize("difficulty", STATISTICS)
def test_statistics_are_those_of_the_original(difficulty):
    pictures = np.stack([pathfinder.picture(32, difficulty, 7, i)[0] for i in range(SAMPLE)]).astype(float)
    found = np.stack([pictures.mean((1, 2)), pictures.std((1, 2)), (pictures > 0).mean((1, 2))])
    error = found.std(axis=1) / SAMPLE**0.5
    assert (np.abs(found.mean(axis=1) - STATISTICS[difficulty]) < 3 * error).all()


def test_both_classes_are_equally_many():
    labels = [pathfinder.picture(32, "easy", 0, i)[1] for i in range(400)]
    assert abs(np.mean(labels) - 0.5) < 3 * 0.5 / 400**0.5


LIT, GAP = 30, 7  # of a snake's pixels, and how far one is from the next at most, which is less than to other strokes


def flood(layer, start):
    """The lit pixels (n, 2) that are reached from a place by steps of at most GAP pixels."""
    pixels = np.argwhere(layer > LIT)
    reached, front = np.zeros(len(pixels), bool), [np.array(start)]
    while front:
        new = ~reached & (np.square(pixels - front.pop()).sum(axis=1) <= GAP**2)
        reached |= new
        front += list(pixels[new])
    return pixels[reached]


def distance(pixels, place):
    return np.sqrt(np.square(pixels - place).sum(axis=1)).min(initial=99)


@pytest.mark.parametrize(("size", "difficulty"), [(32, "hard"), (64, "middle"), (128, "easy")])
def test_labels_are_what_a_flood_finds_in_the_long_snakes(size, difficulty):
    labels = []
    for index in range(14):
        scene = pathfinder.scene(size, difficulty, 11, index)
        pixels = [np.argwhere(snake > LIT) for snake in scene.snakes]
        if any(max(distance(snake, mark) for snake in pixels) < 2 for mark in scene.marks):
            continue  # the last strokes of both touch, which the original allows
        start, end = scene.marks
        own = min(scene.snakes, key=lambda snake: distance(np.argwhere(snake > LIT), start))
        assert (distance(flood(own, start), end) < 1.5) == scene.label, (index, scene.label)
        labels.append(scene.label)
    assert set(labels) == {0, 1} and len(labels) > 10


def test_marks_are_the_brightest_and_on_ends():
    scene = pathfinder.scene(64, "easy", 0, 3)
    assert scene.image.max() == 255 and scene.image.min() == 0 and scene.image.dtype == np.uint8
    assert all(scene.image[y, x] > 245 for y, x in scene.marks)


def test_a_picture_is_a_function_of_seed_and_index():
    for size in STYLES:
        first, again = (pathfinder.scene(size, "easy", 5, 8) for _ in range(2))
        np.testing.assert_array_equal(first.image, again.image)
        assert first.label == again.label
    others = [pathfinder.picture(32, "easy", *key)[0] for key in ((5, 8), (5, 9), (6, 8), (8, 5))]
    assert len({picture.tobytes() for picture in others}) == 4


def test_first_strokes_of_small_pictures_point_up_and_to_the_left():
    """As they do in the original, for a reason that is none (`strokes._room`)."""
    angles = np.flatnonzero(stamps(STYLES[32], 1).begins) - 180
    assert (angles.min(), angles.max(), len(angles)) == (-150, -120, 31)
    assert stamps(STYLES[128], 3).begins.all()


@pytest.mark.parametrize(
    ("size", "difficulty", "said"),
    [(48, "hard", "size=48 .* 32, 64, 128"), (32, "harder", "difficulty='harder' .* easy, middle, hard")],
)
def test_other_pictures_are_refused(size, difficulty, said):
    with pytest.raises(ValueError, match=said):
        pathfinder.picture(size, difficulty, 0, 0)
