"""Pathfinder (Linsley et al., NeurIPS 2018; Kim et al., ICLR 2020): are the two marked ends those of one snake?

Two long snakes of strokes, and shorter ones that distract. Written after the description of Long Range Arena's sets.
A picture is a function of (size, difficulty, seed, index) alone, so that any part of a set can be made anywhere. Numba
compiles the walk in some seconds, in each process anew. Nothing is drawn before both snakes have found their way.
"""

from typing import NamedTuple

import numba
import numpy as np

from flatten_jax.lra.strokes import DEGREES, STYLES, Stamps, stamps

DIFFICULTIES = {"easy": 6, "middle": 9, "hard": 14}  # strokes of a long snake; the arena's set is the hard one
TRIES = 3  # to place a stroke
SNAKE_TRIES = 5  # of a distractor
FREE = 0.3  # what is occupied less is free for a new snake
CROWDED = 0.01  # the share of free pixels below which no snake begins
CROSSING = 1.8  # what two occupied places may not add up to
DARTS = 60  # thrown at random for a free place before all places are looked through


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
    check(size, difficulty)
    style, strokes = STYLES[size], DIFFICULTIES[difficulty]
    state = np.random.SeedSequence([seed, index]).generate_state(1, np.uint64)
    label = _below(state, 2)
    drawn = stamps(style, style.margins[_below(state, len(style.margins))])
    short = strokes // 3
    count = style.strokes_of_distractors // short
    paths = np.zeros((2, strokes, 3), np.int64)
    distractors = np.zeros((count * short, 3), np.int64)
    attempts, used = _walk(
        state,
        size,
        style.distance,
        short,
        drawn.occupied,
        drawn.room,
        drawn.reach,
        drawn.begins,
        drawn.heads,
        drawn.backs,
        drawn.steps,
        drawn.candidates,
        drawn.weights,
        drawn.disc,
        paths,
        distractors,
    )
    first = _below(state, 2)
    marks = np.array([paths[first, 0, 1:], paths[first if label else 1 - first, -1, 1:]])
    return Scene(*_draw(style, drawn, paths, distractors[:used], marks), marks, attempts)._replace(label=label)


def _draw(style, drawn: Stamps, paths, distractors, marks) -> tuple[np.ndarray, int, np.ndarray]:
    """(picture, 0, long snakes alone), the largest of all layers, stretched to 0 ... 255."""
    snakes = np.zeros((2, style.size, style.size), np.float32)
    for layer, path in zip(snakes, paths, strict=True):
        for stroke, y, x in path:
            _stamp(layer, drawn.lines[stroke], y, x)
    image = np.zeros((style.size, style.size), np.float32)
    for stroke, y, x in distractors:
        _stamp(image, drawn.lines[stroke], y, x)
    image = np.maximum(image * style.contrast, snakes.max(axis=0) * (style.contrast * style.long_contrast)) / 255
    for y, x in marks:
        _stamp(image, drawn.marker, y, x)
    low, high = image.min(), image.max()
    grey = ((image - low) * (255 / (high - low)) + 0.5).astype(np.uint8)
    return grey, 0, snakes.astype(np.uint8)


@numba.njit(nogil=True)
def _random(state):
    """Uniform in [0, 1): SplitMix64 (Steele et al., OOPSLA 2014), the same on every machine and in every version."""
    state[0] += np.uint64(0x9E3779B97F4A7C15)
    z = state[0]
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    z = z ^ (z >> np.uint64(31))
    return np.float64(z >> np.uint64(11)) * 2.0**-53


@numba.njit(nogil=True)
def _below(state, count):
    """A whole number from 0 to count - 1."""
    return np.int64(_random(state) * count)


@numba.njit(nogil=True)
def _stamp(image, stamp, y, x):
    """The larger of the picture and a stamp whose centre is at (y, x); what lies outside is cut off."""
    half = stamp.shape[0] // 2
    for i in range(max(0, half - y), min(stamp.shape[0], image.shape[0] + half - y)):
        for j in range(max(0, half - x), min(stamp.shape[1], image.shape[1] + half - x)):
            image[y + i - half, x + j - half] = max(image[y + i - half, x + j - half], stamp[i, j])


@numba.njit(nogil=True)
def _copy(given, taken):
    for y in range(given.shape[0]):
        for x in range(given.shape[1]):
            taken[y, x] = given[y, x]


@numba.njit(nogil=True)
def _crosses(mask, stamp, y, x):
    half = stamp.shape[0] // 2
    for i in range(max(0, half - y), min(stamp.shape[0], mask.shape[0] + half - y)):
        for j in range(max(0, half - x), min(stamp.shape[1], mask.shape[1] + half - x)):
            if np.float64(mask[y + i - half, x + j - half]) + np.float64(stamp[i, j]) >= CROSSING:
                return True
    return False


@numba.njit(nogil=True)
def _moved(place, way):
    return np.int64(np.ceil(place + way))


@numba.njit(nogil=True)
def _inside(y, x, size):
    return 0 <= y < size and 0 <= x < size


@numba.njit(nogil=True)
def _extend(state, mask, occupied, steps, candidates, weights, disc, pivot, last, shares):
    """The stroke after `last`: its number, and where it ends in `pivot[2:]`; -1 where there is no way on.

    `pivot[:2]` moves to the new pivot.
    """
    size = mask.shape[0]
    pivot[0], pivot[1] = _moved(pivot[0], steps[last, 0]), _moved(pivot[1], steps[last, 1])
    total = 0.0
    for k in range(candidates.shape[0]):
        y, x = pivot[0] + candidates[k, 0], pivot[1] + candidates[k, 1]
        if _inside(y, x, size) and weights[last, k] > 0:
            near = np.float32(0.0)
            for d in range(disc.shape[0]):
                v, u = y + disc[d, 0], x + disc[d, 1]
                if _inside(v, u, size):
                    near = max(near, mask[v, u])
            total += (1 - near) * weights[last, k]
        shares[k] = total
    if total < 1e-4:
        return -1
    for _ in range(TRIES):
        wanted, k = _random(state) * total, 0
        while shares[k] <= wanted:
            k += 1
        pivot[2], pivot[3] = pivot[0] + candidates[k, 0], pivot[1] + candidates[k, 1]
        if not _crosses(mask, occupied[DEGREES + k], pivot[2], pivot[3]):
            return DEGREES + k
    return -1


@numba.njit(nogil=True)
def _is_free(mask, room, y, x):
    """Whether a first stroke has its place with its tail at (y, x); the outermost pixels count as occupied."""
    half, last = room.shape[0] // 2, mask.shape[0] - 1
    for i in range(max(0, half - y), min(room.shape[0], last + 1 + half - y)):
        for j in range(max(0, half - x), min(room.shape[1], last + 1 + half - x)):
            v, u = y + i - half, x + j - half
            if room[i, j] and (mask[v, u] > FREE or v == 0 or u == 0 or v == last or u == last):
                return False
    return True


@numba.njit(nogil=True)
def _free_place(state, mask, room, place):
    """Draws one of the free places with equal chances; False where there is none."""
    size = mask.shape[0]
    for _ in range(DARTS):
        place[0], place[1] = _below(state, size), _below(state, size)
        if _is_free(mask, room, place[0], place[1]):
            return True
    count = 0
    for y in range(size):
        for x in range(size):
            if _is_free(mask, room, y, x):
                count += 1
                if _below(state, count) == 0:  # the n-th free place is kept with probability 1 / n
                    place[0], place[1] = y, x
    return count > 0


@numba.njit(nogil=True)
def _turn(place, heads, backs, angle, pivot, size):
    """The pivot of a first stroke with its tail at `place`; whether that and the head are in the picture."""
    y, x = _moved(place[0], heads[angle, 0]), _moved(place[1], heads[angle, 1])
    pivot[0], pivot[1] = _moved(y, backs[angle, 0]), _moved(x, backs[angle, 1])
    return _inside(y, x, size) and _inside(pivot[0], pivot[1], size)


@numba.njit(nogil=True)
def _begin_pair(state, size, distance, reach, begins, heads, backs, paths, places):
    """First strokes of the two long snakes, `distance` apart, the first one in the middle; whether it worked."""
    low, high = 2 * distance, size - 2 * distance
    place = np.zeros(2, np.int64)
    for trial in range(TRIES + 1):
        if trial == TRIES:
            return False
        angle = _below(state, DEGREES)
        rows, columns = high - low - reach[angle, 1] + reach[angle, 0], high - low - reach[angle, 3] + reach[angle, 2]
        if not begins[angle] or rows <= 0 or columns <= 0:
            return False
        place[0] = low - reach[angle, 0] + _below(state, rows)
        place[1] = low - reach[angle, 2] + _below(state, columns)
        if _turn(place, heads, backs, angle, places[0], size):
            break
    paths[0, 0, 0], paths[0, 0, 1], paths[0, 0, 2] = angle, place[0], place[1]
    for trial in range(TRIES + 1):
        if trial == TRIES:
            return False
        angle, turn = _below(state, DEGREES), _below(state, DEGREES) * np.pi / 180
        place[0] = np.int64(np.round(paths[0, 0, 1] + distance * np.sin(turn)))
        place[1] = np.int64(np.round(paths[0, 0, 2] + distance * np.cos(turn)))
        if _turn(place, heads, backs, angle, places[1], size):
            break
    paths[1, 0, 0], paths[1, 0, 1], paths[1, 0, 2] = angle, place[0], place[1]
    return True


@numba.njit(nogil=True)
def _pair(
    state,
    mask,
    distance,
    occupied,
    reach,
    begins,
    heads,
    backs,
    steps,
    candidates,
    weights,
    disc,
    paths,
    places,
    shares,
):
    """Two long snakes that grow in turn; whether both came to their end."""
    if not _begin_pair(state, mask.shape[0], distance, reach, begins, heads, backs, paths, places):
        return False
    for n in range(1, paths.shape[1]):
        for s in range(2):
            last = paths[s, n - 1]
            stroke = _extend(state, mask, occupied, steps, candidates, weights, disc, places[s], last[0], shares)
            if stroke < 0:
                return False
            # A stroke is in the way only once the next one is there, since that begins where it ends.
            _stamp(mask, occupied[last[0]], last[1], last[2])
            paths[s, n, 0], paths[s, n, 1], paths[s, n, 2] = stroke, places[s, 2], places[s, 3]
    # The last stroke of the first snake stays free, as in the original: a distractor may touch it.
    last = paths[1, -1]
    _stamp(mask, occupied[last[0]], last[1], last[2])
    return True


@numba.njit(nogil=True)
def _distractor(
    state, mask, occupied, room, begins, heads, backs, steps, candidates, weights, disc, path, pivot, shares
):
    """One short snake on the mask; whether it came to its end. The mask is the caller's to put back."""
    size = mask.shape[0]
    free = 0
    for y in range(size):
        for x in range(size):
            free += mask[y, x] <= FREE
    if free < CROWDED * size * size:
        return False
    place = np.zeros(2, np.int64)
    for trial in range(TRIES + 1):
        if trial == TRIES:
            return False
        angle = _below(state, DEGREES)
        if not begins[angle] or not _free_place(state, mask, room[angle], place):
            return False
        if _turn(place, heads, backs, angle, pivot, size):
            break
    path[0, 0], path[0, 1], path[0, 2] = angle, place[0], place[1]
    for n in range(1, path.shape[0]):
        last = path[n - 1]
        stroke = _extend(state, mask, occupied, steps, candidates, weights, disc, pivot, last[0], shares)
        if stroke < 0:
            return False
        _stamp(mask, occupied[last[0]], last[1], last[2])
        path[n, 0], path[n, 1], path[n, 2] = stroke, pivot[2], pivot[3]
    last = path[-1]
    _stamp(mask, occupied[last[0]], last[1], last[2])
    return True


@numba.njit(nogil=True)
def _walk(
    state,
    size,
    distance,
    short,
    occupied,
    room,
    reach,
    begins,
    heads,
    backs,
    steps,
    candidates,
    weights,
    disc,
    paths,
    distractors,
):
    """Strokes (number, row, column) of a picture, into `paths` (2, strokes, 3) and `distractors`.

    Returns:
        (pairs of long snakes that were begun, strokes of distractors).
    """
    mask, shares = np.zeros((size, size), np.float32), np.zeros(candidates.shape[0])
    places = np.zeros((2, 4), np.int64)
    attempts, done = 0, False
    while not done:
        attempts += 1
        for y in range(size):
            for x in range(size):  # a border of one pixel
                mask[y, x] = y == 0 or x == 0 or y == size - 1 or x == size - 1
        done = _pair(
            state,
            mask,
            distance,
            occupied,
            reach,
            begins,
            heads,
            backs,
            steps,
            candidates,
            weights,
            disc,
            paths,
            places,
            shares,
        )
    before, used = np.zeros((size, size), np.float32), 0
    _copy(mask, before)
    for _ in range(distractors.shape[0] // short):
        for _ in range(SNAKE_TRIES):
            path = distractors[used : used + short]
            if _distractor(
                state,
                mask,
                occupied,
                room,
                begins,
                heads,
                backs,
                steps,
                candidates,
                weights,
                disc,
                path,
                places[0],
                shares,
            ):
                used += short
                _copy(mask, before)
                break
            _copy(before, mask)
    return attempts, used
