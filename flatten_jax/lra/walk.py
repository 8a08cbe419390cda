"""How Pathfinder's snakes find their way, compiled by Numba in ten seconds, in each process anew.

Nothing is drawn here: a snake is a path, strokes as (number of the stamp, row, column of its given end), and a mask
says how far each pixel is occupied. `t` are the stamps.
"""

import numba
import numpy as np

from flatten_jax.lra.strokes import DEGREES

TRIES = 3  # to place a stroke
SNAKE_TRIES = 5  # of a distractor
FREE = 0.3  # what is occupied less is free for a new snake
CROWDED = 0.01  # the share of free pixels below which no snake begins
CROSSING = 1.8  # what two occupied places may not add up to
DARTS = 60  # thrown at random for a free place before all places are looked through


@numba.njit(nogil=True)
def uniform(state):
    """Uniform in [0, 1): SplitMix64 (Steele et al., OOPSLA 2014), the same on every machine and in every version.

    Args:
        state: uint64 (1,), which moves on.
    """
    state[0] += np.uint64(0x9E3779B97F4A7C15)
    z = state[0]
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    z = z ^ (z >> np.uint64(31))
    return np.float64(z >> np.uint64(11)) * 2.0**-53


@numba.njit(nogil=True)
def below(state, count):
    """A whole number from 0 to count - 1."""
    return np.int64(uniform(state) * count)


@numba.njit(nogil=True)
def stamp(image, picture, y, x):
    """Makes `image` the larger of itself and a picture whose centre is at (y, x); what lies outside is cut off."""
    half = picture.shape[0] // 2
    for i in range(max(0, half - y), min(picture.shape[0], image.shape[0] + half - y)):
        for j in range(max(0, half - x), min(picture.shape[1], image.shape[1] + half - x)):
            image[y + i - half, x + j - half] = max(image[y + i - half, x + j - half], picture[i, j])


@numba.njit(nogil=True)
def _occupy(t, mask, path, n):
    stamp(mask, t.occupied[path[n, 0]], path[n, 1], path[n, 2])


@numba.njit(nogil=True)
def _copy(given, taken):
    for y in range(given.shape[0]):
        for x in range(given.shape[1]):
            taken[y, x] = given[y, x]


@numba.njit(nogil=True)
def _crosses(mask, picture, y, x):
    half = picture.shape[0] // 2
    for i in range(max(0, half - y), min(picture.shape[0], mask.shape[0] + half - y)):
        for j in range(max(0, half - x), min(picture.shape[1], mask.shape[1] + half - x)):
            if np.float64(mask[y + i - half, x + j - half]) + np.float64(picture[i, j]) >= CROSSING:
                return True
    return False


@numba.njit(nogil=True)
def _moved(place, way):
    return np.int64(np.ceil(place + way))


@numba.njit(nogil=True)
def _inside(y, x, size):
    return 0 <= y < size and 0 <= x < size


@numba.njit(nogil=True)
def _extend(t, state, mask, path, n, pivot, shares):
    """Stroke n of a path, whose pivot moves on; whether there is one."""
    size, last = mask.shape[0], path[n - 1, 0]
    pivot[0], pivot[1] = _moved(pivot[0], t.steps[last, 0]), _moved(pivot[1], t.steps[last, 1])
    total = 0.0
    for k in range(t.candidates.shape[0]):
        y, x = pivot[0] + t.candidates[k, 0], pivot[1] + t.candidates[k, 1]
        if _inside(y, x, size) and t.weights[last, k] > 0:
            near = np.float32(0.0)
            for d in range(t.disc.shape[0]):
                v, u = y + t.disc[d, 0], x + t.disc[d, 1]
                if _inside(v, u, size):
                    near = max(near, mask[v, u])
            total += (1 - near) * t.weights[last, k]
        shares[k] = total
    if total < 1e-4:
        return False
    for _ in range(TRIES):
        wanted, k = uniform(state) * total, 0
        while shares[k] <= wanted:
            k += 1
        y, x = pivot[0] + t.candidates[k, 0], pivot[1] + t.candidates[k, 1]
        if not _crosses(mask, t.occupied[DEGREES + k], y, x):
            # A stroke is in the way only once the next one is there, since that begins where it ends.
            _occupy(t, mask, path, n - 1)
            path[n, 0], path[n, 1], path[n, 2] = DEGREES + k, y, x
            return True
    return False


@numba.njit(nogil=True)
def _begin(t, path, pivot, angle, y, x, size):
    """A first stroke with its tail at (y, x); whether its head and pivot are in the picture."""
    path[0, 0], path[0, 1], path[0, 2] = angle, y, x
    y, x = _moved(y, t.heads[angle, 0]), _moved(x, t.heads[angle, 1])
    pivot[0], pivot[1] = _moved(y, t.backs[angle, 0]), _moved(x, t.backs[angle, 1])
    return _inside(y, x, size) and _inside(pivot[0], pivot[1], size)


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
def _free_place(state, mask, room):
    """One of the free places, drawn with equal chances; (-1, -1) where there is none."""
    size = mask.shape[0]
    for _ in range(DARTS):
        y, x = below(state, size), below(state, size)
        if _is_free(mask, room, y, x):
            return y, x
    count, row, column = 0, -1, -1
    for y in range(size):
        for x in range(size):
            if _is_free(mask, room, y, x):
                count += 1
                if below(state, count) == 0:  # the n-th free place is kept with probability 1 / n
                    row, column = y, x
    return row, column


@numba.njit(nogil=True)
def _begin_pair(t, state, size, distance, paths, pivots):
    """First strokes of the two long snakes, `distance` apart, the first one in the middle; whether it worked."""
    low, high = 2 * distance, size - 2 * distance
    for trial in range(TRIES + 1):
        if trial == TRIES:
            return False
        angle = below(state, DEGREES)
        rows = high - low - t.reach[angle, 1] + t.reach[angle, 0]
        columns = high - low - t.reach[angle, 3] + t.reach[angle, 2]
        if not t.begins[angle] or rows <= 0 or columns <= 0:
            return False
        y = low - t.reach[angle, 0] + below(state, rows)
        x = low - t.reach[angle, 2] + below(state, columns)
        if _begin(t, paths[0], pivots[0], angle, y, x, size):
            break
    for _ in range(TRIES):
        angle, turn = below(state, DEGREES), below(state, DEGREES) * np.pi / 180
        v, u = np.int64(np.round(y + distance * np.sin(turn))), np.int64(np.round(x + distance * np.cos(turn)))
        if _begin(t, paths[1], pivots[1], angle, v, u, size):
            return True
    return False


@numba.njit(nogil=True)
def _pair(t, state, mask, distance, paths, pivots, shares):
    """Two long snakes that grow in turn; whether both came to their end."""
    if not _begin_pair(t, state, mask.shape[0], distance, paths, pivots):
        return False
    for n in range(1, paths.shape[1]):
        for s in range(2):
            if not _extend(t, state, mask, paths[s], n, pivots[s], shares):
                return False
    # The last stroke of the first snake stays free, as in the original: a distractor may touch it.
    _occupy(t, mask, paths[1], paths.shape[1] - 1)
    return True


@numba.njit(nogil=True)
def _distractor(t, state, mask, path, pivot, shares):
    """One short snake; whether it came to its end. The mask is the caller's to put back."""
    size, free = mask.shape[0], 0
    for y in range(size):
        for x in range(size):
            free += mask[y, x] <= FREE
    if free < CROWDED * size * size:
        return False
    for trial in range(TRIES + 1):
        angle = below(state, DEGREES)
        if trial == TRIES or not t.begins[angle]:
            return False
        y, x = _free_place(state, mask, t.room[angle])
        if y < 0:
            return False
        if _begin(t, path, pivot, angle, y, x, size):
            break
    for n in range(1, path.shape[0]):
        if not _extend(t, state, mask, path, n, pivot, shares):
            return False
    _occupy(t, mask, path, path.shape[0] - 1)
    return True


@numba.njit(nogil=True)
def walk(t, state, size, distance, paths, distractors):
    """All paths of a picture.

    Args:
        t: `Stamps`.
        state: of the random numbers.
        size: of the picture.
        distance: between the tails of the two long snakes.
        paths: int64 (2, strokes, 3), to be filled.
        distractors: int64 (snakes, strokes, 3), to be filled from the front; some find no place.

    Returns:
        (pairs of long snakes that were begun, distractors).
    """
    mask, shares = np.zeros((size, size), np.float32), np.zeros(t.candidates.shape[0])
    pivots = np.zeros((2, 2), np.int64)
    attempts, done = 0, False
    while not done:
        attempts += 1
        for y in range(size):
            for x in range(size):  # a border of one pixel is occupied
                mask[y, x] = y == 0 or x == 0 or y == size - 1 or x == size - 1
        done = _pair(t, state, mask, distance, paths, pivots, shares)
    before, count = np.zeros((size, size), np.float32), 0
    _copy(mask, before)
    for _ in range(distractors.shape[0]):
        for _ in range(SNAKE_TRIES):
            if _distractor(t, state, mask, distractors[count], pivots[0], shares):
                count += 1
                _copy(mask, before)
                break
            _copy(before, mask)
    return attempts, count
