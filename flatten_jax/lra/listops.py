"""ListOps (Nangia and Bowman, NAACL 2018) as in Long Range Arena: what do nested lists of operations come to?

`[MAX 2 9 [MIN 4 7 ] 0 ]` comes to 9. A sequence is a function of (seed, index) alone. The official split is not: its
trees were drawn without a seed, so nobody's is the same.
"""

import random
from collections.abc import Callable

import numpy as np

OPERATORS: dict[str, Callable[[list[int]], int]] = {
    "[MIN": min,
    "[MAX": max,
    "[MED": lambda values: (sorted(values)[(len(values) - 1) // 2] + sorted(values)[len(values) // 2]) // 2,
    "[SM": lambda values: sum(values) % 10,
}
PADDING = ""
# A token's number is its place: 0 fills up.
WORDS = (PADDING, *map(str, range(10)), *OPERATORS, "]")
SHORTEST, LONGEST = 501, 1999
DEPTH, ARGUMENTS, NESTED = 10, 10, 0.25  # of lists in lists, of an operator at most, and how often one is a list

_NUMBERS = {word: number for number, word in enumerate(WORDS)}
_NAMES = tuple(OPERATORS)


class _TooLong(Exception):
    """A list has more tokens than are taken."""


def sequence(seed: int, index: int, draw: int = 0) -> tuple[np.ndarray, int]:
    """One sequence of a set: (uint8 (length,), what it comes to), 500 < length < 2,000.

    Args:
        seed, index: two numbers of 0 or more; each index of a seed is a sequence of its own.
        draw: another one in its place, where it was in the set already.
    """
    rng = random.Random(int.from_bytes(np.random.SeedSequence([seed, index, draw]).generate_state(4).tobytes()))
    while True:
        tokens: list[int] = []
        try:
            value = _draw(rng, 1, tokens)
        except _TooLong:
            continue
        if len(tokens) >= SHORTEST:
            return np.array(tokens, np.uint8), value


def text(tokens: np.ndarray) -> str:
    """The words of a sequence, without what fills it up."""
    return " ".join(WORDS[token] for token in tokens if token)


def _draw(rng: random.Random, depth: int, tokens: list[int]) -> int:
    """Adds the tokens of a list, or of a digit, and returns what it comes to."""
    if depth >= DEPTH or rng.random() > NESTED:
        digit = int(rng.random() * 10)
        tokens.append(_NUMBERS[str(digit)])
        return digit
    operator = _NAMES[int(rng.random() * len(_NAMES))]
    tokens.append(_NUMBERS[operator])
    count = 2 + int(rng.random() * (ARGUMENTS - 1))
    values = [_draw(rng, depth + 1, tokens) for _ in range(count)]
    tokens.append(_NUMBERS["]"])
    if len(tokens) > LONGEST:
        raise _TooLong
    return OPERATORS[operator](values)
