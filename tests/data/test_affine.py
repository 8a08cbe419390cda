"""The compiled affine transform against Pillow's."""

import numpy as np
import pytest
from PIL import Image

from flatten_jax.data.affine import affine
from flatten_jax.data.rand_augment import FILL, INCREASING

SIZES = [(1, 1), (2, 3), (19, 40), (64, 51)]


def noise(height: int, width: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(256, size=(height, width, 3), dtype=np.uint8))


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_equal_to_pillow(size):
    image, rng = noise(*size), np.random.default_rng(1)
    for a, b, c, d, e, f in [
        (1, 0, 0, 0, 1, 0),
        (1, 0, image.width, 0, 1, 0),  # nothing of the picture is left
        (-1, 0, image.width, 0, -1, image.height),
        (1, 0, 0.5, 0, 1, -0.5),  # to the edges exactly: one is outside, the other is not
        (1, 0, -0.5, 0, 1, 0.5),
        (1, 0, 1 - 2**-52, 0, 1, 0),  # rounds to another pixel within a row
        (1, 0, 0, 0, 1, 2**-53 - 1),
        *np.array([1, 0, 0, 0, 1, 0]) + np.eye(6)[[1, 2, 3, 5]] * 0.37,
        *rng.normal([1, 0, 0, 0, 1, 0], 0.3, (20, 6)),
        *rng.normal(0, 3, (20, 6)),
    ]:
        matrix = (a, b, c, d, e, f)
        expected = image.transform(image.size, Image.Transform.AFFINE, matrix, Image.Resampling.BICUBIC, fillcolor=FILL)
        np.testing.assert_array_equal(np.asarray(affine(image, matrix, FILL)), np.asarray(expected), f"{matrix}")


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_the_rotation_of_rand_augment_is_pillows(size):
    image = noise(*size)
    for degrees in (0, 1e-9, -1e-9, 7.25, 30, -30, *np.random.default_rng(1).uniform(-30, 30, 20)):
        expected = image.rotate(degrees, Image.Resampling.BICUBIC, fillcolor=FILL)
        found = INCREASING["Rotate"].apply(image, degrees)
        np.testing.assert_array_equal(np.asarray(found), np.asarray(expected), f"{degrees}")
