"""What a few seeds say: mean and spread, differences seed by seed, and whether two orders agree."""

import itertools
import math
import statistics
from collections.abc import Mapping, Sequence
from typing import NamedTuple

MOST = 16  # values whose orders are counted exactly


class Summary(NamedTuple):
    """Of one attention over seeds.

    Attributes:
        mean: of the values.
        spread: their standard deviation (n - 1); None of a single one.
        count: how many there are.
    """

    mean: float
    spread: float | None
    count: int


def summary(values: Sequence[float]) -> Summary | None:
    """None where there is no value."""
    if not values:
        return None
    spread = statistics.stdev(values) if len(values) > 1 else None
    return Summary(statistics.fmean(values), spread, len(values))


def paired(values: Mapping[int, float], reference: Mapping[int, float]) -> Summary | None:
    """The differences to the reference of the same seed, over the seeds (keys) that both have."""
    return summary([values[seed] - reference[seed] for seed in sorted(values.keys() & reference.keys())])


class Kendall(NamedTuple):
    """Agreement of two orders.

    Attributes:
        tau: Kendall's tau-b, from -1 (reversed) to 1 (the same); NaN where one of them has no order.
        p: the exact probability that an order by chance agrees or disagrees as much; two-sided.
        count: of values.
    """

    tau: float
    p: float
    count: int


def kendall(x: Sequence[float], y: Sequence[float]) -> Kendall:
    """Kendall's tau-b of two lists, ties allowed, with the p-value by all n! orders.

    tau-b = (concordant - discordant) / sqrt(pairs that differ in x * pairs that differ in y)  (Kendall, 1945).

    Raises:
        ValueError: lists of other lengths, of less than 2 values or of more than `MOST`.
    """
    n = len(x)
    if n != len(y) or not 2 <= n <= MOST:
        raise ValueError(f"{n} and {len(y)} values: two lists of the same length are needed, from 2 to {MOST}")
    pairs = list(itertools.combinations(range(n), 2))
    score = sum(_sign(x[j] - x[i]) * _sign(y[j] - y[i]) for i, j in pairs)
    untied = math.prod(sum(a[i] != a[j] for i, j in pairs) for a in (x, y))
    if not untied:
        return Kendall(math.nan, math.nan, n)
    counts = _scores(x, y)
    as_far = sum(count for other, count in counts.items() if abs(other) >= abs(score))
    return Kendall(score / math.sqrt(untied), as_far / math.factorial(n), n)


def _sign(value: float) -> int:
    return (value > 0) - (value < 0)


def _scores(x: Sequence[float], y: Sequence[float]) -> dict[int, int]:
    """Concordant minus discordant pairs -> how many of the n! orders of x against y have it.

    The values of y are filled from the lowest up, those that are equal at once; what counts afterwards is only which x
    are used. Numbers of orders are digits of one whole number, `width` bits for each score: to add a score is to
    shift.
    """
    n = len(x)
    width, lowest = math.factorial(n).bit_length(), n * (n - 1) // 2
    states = {0: 1 << width * lowest}  # x that are used, as bits -> orders by score
    for _, group in itertools.groupby(sorted(y)):
        size = len(list(group))
        filled: dict[int, int] = {}
        for used, orders in states.items():
            before = [x[i] for i in range(n) if used >> i & 1]
            gain = {i: sum(_sign(x[i] - b) for b in before) for i in range(n) if not used >> i & 1}
            for chosen in itertools.combinations(gain, size):
                shift = width * sum(gain[i] for i in chosen)
                moved = orders << shift if shift >= 0 else orders >> -shift
                after = used | sum(1 << i for i in chosen)
                filled[after] = filled.get(after, 0) + math.factorial(size) * moved
        states = filled
    (orders,), mask = states.values(), (1 << width) - 1
    found = {score: orders >> width * (score + lowest) & mask for score in range(-lowest, lowest + 1)}
    return {score: count for score, count in found.items() if count}
