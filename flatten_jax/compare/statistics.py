"""What a few seeds say: mean and spread, differences seed by seed, and whether two orders agree."""

import itertools
import math
import statistics
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from scipy.stats import kendalltau

MOST = 16  # values whose orders are counted where both lists have ties; of more the p-value is a normal approximation


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
        p: the probability that an order by chance agrees or disagrees as much; two-sided.
        count: of values.
        exact: p is counted; else both lists have ties, of more than `MOST` values, whose orders are too many, and it is
            SciPy's normal approximation.
    """

    tau: float
    p: float
    count: int
    exact: bool = True


def kendall(x: Sequence[float], y: Sequence[float]) -> Kendall:
    """Kendall's tau-b of two lists, ties allowed, with the p-value by all n! orders where they can be counted.

    tau-b = (concordant - discordant) / sqrt(pairs that differ in x * pairs that differ in y)  (Kendall, 1945).

    Raises:
        ValueError: lists of other lengths, or of less than 2 values.
    """
    n = len(x)
    if n != len(y) or n < 2:
        raise ValueError(f"{n} and {len(y)} values: two lists of the same length are needed, of at least 2")
    pairs = list(itertools.combinations(range(n), 2))
    score = sum(_sign(x[j] - x[i]) * _sign(y[j] - y[i]) for i, j in pairs)
    untied = math.prod(sum(a[i] != a[j] for i, j in pairs) for a in (x, y))
    if not untied:
        return Kendall(math.nan, math.nan, n)
    if len(set(y)) == n:
        counts = _inversions(x)
    elif len(set(x)) == n:
        counts = _inversions(y)
    elif n <= MOST:
        counts = _scores(x, y)
    else:
        return Kendall(score / math.sqrt(untied), float(kendalltau(x, y, method="asymptotic").pvalue), n, exact=False)
    as_far = sum(count for other, count in counts.items() if abs(other) >= abs(score))
    return Kendall(score / math.sqrt(untied), as_far / sum(counts.values()), n)


def _inversions(x: Sequence[float]) -> dict[int, int]:
    """Concordant minus discordant pairs -> how many arrangements of x, ties alike, have it against a strict order.

    The arrangements with k inversions are the coefficients of q^k in the Gaussian multinomial: the product of 1 - q^i,
    i = 1 ... n, over those products of each group of ties (MacMahon, 1916).
    """
    groups = [x.count(value) for value in set(x)]
    most = (len(x) ** 2 - sum(size**2 for size in groups)) // 2  # pairs that are no ties
    coefficients = [1] + [0] * most
    for i in range(1, len(x) + 1):
        for k in range(most, i - 1, -1):
            coefficients[k] -= coefficients[k - i]
    for i in (i for size in groups for i in range(1, size + 1)):
        for k in range(i, most + 1):
            coefficients[k] += coefficients[k - i]
    return {most - 2 * k: count for k, count in enumerate(coefficients)}


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
