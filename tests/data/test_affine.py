"""The compiled affine transform against Pillow's."""

import numpy as np
import pytest
from PIL import Image

from flatten_jax.data.affine import affine
from flatten_jax.data.rand_augment import FILL


def assert_equal_to_pillow(pixels: np.ndarray, *matrix: float) -> None:
    image = Image.fromarray(pixels.astype(np.uint8))
    expected = image.transform(image.size, Image.Transform.AFFINE, matrix, Image.Resampling.BICUBIC, fillcolor=FILL)
    np.testing.assert_array_equal(np.asarray(affine(image, matrix, FILL)), np.asarray(expected), f"{matrix}")


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (19, 40), (64, 51)], ids=str)
def test_equal_to_pillow(size):
    noise, rng = np.random.default_rng(0).integers(256, size=(*size, 3)), np.random.default_rng(1)
    height, width = size
    for matrix in [
        (1, 0, 0, 0, 1, 0),
        (1, 0, width, 0, 1, 0),  # nothing of the picture is left
        (-1, 0, width, 0, -1, height),
        (1, 0, 0.5, 0, 1, -0.5),  # to the edges exactly: one is outside, the other is not
        (1, 0, -0.5, 0, 1, 0.5),
        (1, 0, 1 - 2**-52, 0, 1, 0),  # rounds to another pixel within a row
        (1, 0, 0, 0, 1, 2**-53 - 1),
        *rng.normal([1, 0, 0, 0, 1, 0], 0.3, (20, 6)),
        *rng.normal(0, 3, (20, 6)),
    ]:
        assert_equal_to_pillow(noise, *matrix)


@pytest.mark.parametrize("matrix", [(0.6, 0.8, 0, -0.8, 0.6, 30), (0.8, 0.6, -5, -0.6, 0.8, 20)], ids=str)
def test_sums_are_taken_in_pillows_order(matrix):
    """Values that are whole in exact arithmetic, and come out below, where they are cut, in another order."""
    assert_equal_to_pillow(np.random.default_rng(0).integers(2, size=(224, 224, 3)) * 255, *matrix)
