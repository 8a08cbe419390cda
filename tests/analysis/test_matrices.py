"""The measures on matrices whose answer is known."""

import warnings

import numpy as np
import pytest

from flatten_jax.analysis import distance, entropy, numerical_rank
from flatten_jax.analysis.matrices import mean

IDENTITY, UNIFORM = np.eye(6), np.full((6, 6), 1 / 6)


def test_rank_counts_what_float32_can_tell_from_nothing():
    rng = np.random.default_rng(0)
    low = rng.standard_normal((2, 9, 4)) @ rng.standard_normal((2, 4, 7))
    np.testing.assert_array_equal(numerical_rank(low + 1e-7 * rng.standard_normal((2, 9, 7))), 4)
    assert numerical_rank(np.diag([1.0, 1e-2, 1e-4])) == 3
    assert numerical_rank(np.diag([1.0, 1e-2, 1e-4]), tolerance=1e-3) == 2
    assert numerical_rank(np.zeros((3, 3))) == 0


@pytest.mark.parametrize(
    "matrix, expected", [(IDENTITY, 0), (UNIFORM, np.log(6)), (np.array([[0.0, -2.0, 2.0]]), np.log(2))]
)
def test_entropy(matrix, expected):
    np.testing.assert_allclose(entropy(matrix), expected, atol=1e-12)


def test_distance_is_weighted_and_leaves_out_what_has_no_place():
    places = np.array([[0, 0], [0, 3], [4, 0], [np.nan, np.nan]])
    rows = np.array([[0.0, 0.5, 0.5, 0.0], [0.2, 0.2, 0.0, 0.6]])
    np.testing.assert_allclose(distance(rows, places[:2], places), [3.5, 1.5])
    assert np.isnan(distance(rows[:1], places[3:], places)).all()


def test_rows_without_weight_have_no_entropy_and_count_in_no_mean():
    matrix = np.array([[0.0, 0.0], [0.5, 0.5], [0.0, 2.0]])
    with warnings.catch_warnings(action="error"):
        rows = entropy(matrix)
    np.testing.assert_allclose(rows, [np.nan, np.log(2), 0], atol=1e-12)
    np.testing.assert_allclose(mean(rows), np.log(2) / 2)
    np.testing.assert_array_equal(mean(np.array([[np.nan, 1.0], [np.nan, 2.0]]), axis=0), [np.nan, 1.5])
