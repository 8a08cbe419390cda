"""ListOps: sequences by index, and what they come to by another way of computing it."""

import statistics

import numpy as np
import pytest

from flatten_jax.lra import listops

SAMPLE = 60


def evaluated(text):
    """By Python, of the same text as calls of functions."""
    functions = {
        "MIN": lambda *values: min(values),
        "MAX": lambda *values: max(values),
        "MED": lambda *values: int(statistics.median(values)),
        "SM": lambda *values: sum(values) % 10,
    }
    words = [f"{word[1:]}(" if word[0] == "[" else ")," if word == "]" else f"{word}," for word in text.split()]
    return eval("".join(words).rstrip(","), {"__builtins__": {}}, functions)


def test_the_other_way_is_right():
    assert evaluated("[MAX 2 9 [MIN 4 7 ] 0 ]") == 9
    assert evaluated("[SM 9 8 [MED 1 4 7 8 ] ]") == 2  # the median of four, 5.5, is rounded down


@pytest.fixture(scope="module")
def sequences():
    return [listops.sequence(0, index) for index in range(SAMPLE)]


def test_every_sequence_comes_to_its_label(sequences):
    for tokens, value in sequences:
        assert evaluated(listops.text(tokens)) == value


def test_sequences_are_as_long_as_they_should_be(sequences):
    lengths = [len(tokens) for tokens, _ in sequences]
    assert min(lengths) > 500 and max(lengths) < 2000
    assert abs(np.mean(lengths) - 1062) < 3 * np.std(lengths) / SAMPLE**0.5
    tokens = np.concatenate([tokens for tokens, _ in sequences])
    assert tokens.min() == 1 and tokens.max() == len(listops.WORDS) - 1 == 15


@pytest.mark.slow
def test_0_and_9_are_twice_as_frequent_as_the_others():
    count = 600
    shares = np.bincount([listops.sequence(1, index)[1] for index in range(count)], minlength=10) / count
    for share, expected in ((shares[0], 0.173), (shares[9], 0.175)):
        assert abs(share - expected) < 3 * (expected / count) ** 0.5
    assert shares[1:9].min() > 0.05 and shares[1:9].max() < 0.12


def test_a_sequence_is_a_function_of_seed_and_index():
    first, again = (listops.sequence(4, 2)[0] for _ in range(2))
    np.testing.assert_array_equal(first, again)
    assert len({listops.sequence(*key)[0].tobytes() for key in ((4, 2), (2, 4), (4, 3), (4, 2, 1))}) == 4
