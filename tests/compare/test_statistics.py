"""Hand cases, and all orders counted one by one."""

import itertools
import math
import random

import pytest

from flatten_jax.attention import ATTENTIONS
from flatten_jax.compare.published import PUBLISHED, SAME_HOST
from flatten_jax.compare.statistics import Summary, kendall, paired, summary


@pytest.mark.parametrize(
    ("x", "y", "tau", "p"),
    [
        ([1, 2, 3, 4], [1, 2, 4, 3], 4 / 6, 8 / 24),  # of 24 orders 1 + 3 have at most one inversion, 4 at least five
        ([1, 2, 3, 4], [4, 3, 2, 1], -1, 2 / 24),
        ([1, 2, 3], [1, 2, 3], 1, 2 / 6),
        ([1, 2, 2, 3], [1, 2, 3, 4], 5 / math.sqrt(5 * 6), 4 / 24),  # twice 2 orders agree, twice 2 disagree
        ([1, 2], [2, 1], -1, 1),
    ],
)
def test_kendall_by_hand(x, y, tau, p):
    assert kendall(x, y) == pytest.approx((tau, p, len(x), True))
    assert kendall(y, x) == pytest.approx((tau, p, len(x), True))


@pytest.mark.parametrize("x", [[1, 2, 3, 4, 5, 6], [1, 1, 2, 3, 3, 3], [5, 1, 1, 2, 2, 9]])
@pytest.mark.parametrize("y", [[2, 1, 4, 3, 6, 5], [1, 2, 2, 3, 4, 4], [7, 7, 7, 1, 2, 2]])
def test_the_p_value_counts_all_orders(x, y):
    def score(order):
        pairs = itertools.combinations(zip(order, y, strict=True), 2)
        signs = [((a > b) - (a < b)) * ((c > d) - (c < d)) for (a, c), (b, d) in pairs]
        return abs(sum(signs))

    far = [score(order) >= score(x) for order in itertools.permutations(x)]
    assert kendall(x, y).p == pytest.approx(sum(far) / len(far))


def test_an_order_that_is_none_has_no_agreement():
    assert math.isnan(kendall([1, 1, 1], [1, 2, 3]).tau)
    for x, y in (([1], [1]), ([1, 2], [1, 2, 3])):
        with pytest.raises(ValueError, match="two lists of the same length"):
            kendall(x, y)


def test_many_values_are_counted_too_and_with_ties_in_both_approximated():
    x = list(range(40))
    assert kendall(x, x).p == pytest.approx(2 / math.factorial(40))
    assert kendall([*x[:-1], 38], x).p == pytest.approx(2 * 2 / math.factorial(40))
    half = [i // 2 for i in random.Random(0).sample(range(60), 40)]  # few ties: near what is counted without
    near, counted = kendall(half, [0, 0, *x[2:]]), kendall(half, x)
    assert not near.exact and counted.exact and 0.05 < counted.p < 0.95
    assert near.p == pytest.approx(counted.p, rel=0.1)


def test_mean_spread_and_differences_of_the_same_seed():
    assert summary([90.0, 92.0, 94.0]) == Summary(92, 2, 3)
    assert summary([90.0]) == Summary(90, None, 1)
    assert summary([]) is None
    assert paired({0: 93.0, 1: 95.0, 7: 1.0}, {1: 92.0, 0: 91.0}) == pytest.approx((2.5, math.sqrt(0.5), 2))
    assert paired({0: 1.0}, {1: 1.0}) is None


def test_published_rows_are_of_attentions_that_are_here():
    assert set(PUBLISHED) <= set(ATTENTIONS)
    assert len(SAME_HOST) == 12 and "ttt" not in SAME_HOST
