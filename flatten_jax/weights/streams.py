"""Projections of streams (q, k, v, ...): hosts and originals group them otherwise, and the weights are the same."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby

import numpy as np

from flatten_jax.weights.layout import Row, torch_modules


def regrouped(rows: Sequence[Row], arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """State dict entries with the projections of streams grouped as the model has them.

    The same streams may come as `qkv`, as `q` and `kv`, or one by one, and a layer within a token as a 1 x 1
    convolution or as a matrix. What does not fit so is left as it was.

    Args:
        rows: of the model.
        arrays: name -> array.
    """
    arrays = dict(arrays)
    for projections in _projections(rows):
        if all(name in arrays for row in projections for name in row.entries()):
            continue
        of_letters, used = _letters(projections, arrays)
        if of_letters is not None:
            for name in used:
                del arrays[name]
            for row in projections:
                arrays |= row.to_torch(np.concatenate([of_letters[letter] for letter, _ in row.letters], axis=-1))
    for row in rows:
        for name, shape in row.entries().items():
            array = arrays.get(name)
            if array is not None and array.shape != shape and _matrix(array.shape) == _matrix(shape):
                arrays[name] = array.reshape(shape)
    return arrays


def pieces(row: Row, array: np.ndarray) -> dict[tuple[str, ...], np.ndarray]:
    """A variable by what it is made of, stream by stream, under names that do not depend on how streams are grouped.

    Args:
        row: of the variable.
        array: in our layout.

    Returns:
        (collection, *path of the attention, letter, leaf) -> the part that makes this stream, in the order in which
        they lie along the last axis; of what is no projection (collection, *path) -> all of it.
    """
    if not row.letters:
        return {(row.collection, *row.path): array}
    keys = ((row.collection, *row.path[:-2], letter, row.path[-1]) for letter, _ in row.letters)
    return dict(zip(keys, _split(array, row.letters), strict=True))


def _projections(rows: Sequence[Row]) -> Iterator[list[Row]]:
    """The weights, and then the biases, of the projections of each attention."""

    def place(row: Row) -> tuple[tuple[str, ...], str]:
        return row.path[:-2], row.path[-1]

    for _, group in groupby(sorted((row for row in rows if row.letters), key=place), key=place):
        yield list(group)


def _letters(
    projections: list[Row], arrays: Mapping[str, np.ndarray]
) -> tuple[dict[str, np.ndarray] | None, list[str]]:
    """(stream -> its part of a weight or bias in our layout, names used), or (None, []) where one is not found."""
    wanted = {letter: width for row in projections for letter, width in row.letters}
    before, leaf = torch_modules(projections[0].path[:-2]), projections[0].name.rpartition(".")[2]
    found, used = {}, []
    for name, array in arrays.items():
        group = name[len(before) : -len(leaf) - 1]
        if (
            name != f"{before}{group}.{leaf}"
            or not group
            or len(set(group)) < len(group)
            or not set(group) <= set(wanted)
        ):
            continue
        letters = [(letter, wanted[letter]) for letter in group]
        array = array.reshape(_matrix(array.shape))
        if array.ndim != len(projections[0].axes) or len(array) != sum(width for _, width in letters):
            return None, []
        parts = _split(array.transpose(projections[0].axes), letters)
        found |= {letter: part for letter, part in zip(group, parts, strict=True)}
        used.append(name)
    return (found, used) if set(found) == set(wanted) else (None, [])


def is_group(module: str, letters: Iterable[str]) -> bool:
    """Whether a module's name consists of letters of streams, each once."""
    return bool(module) and len(set(module)) == len(module) and set(module) <= set(letters)


def _split(array: np.ndarray, letters: Sequence[tuple[str, int]]) -> list[np.ndarray]:
    return np.split(array, np.cumsum([width for _, width in letters])[:-1], axis=-1)


def _matrix(shape: tuple[int, ...]) -> tuple[int, ...]:
    """[O, I, 1, 1] -> [O, I]."""
    while len(shape) > 2 and shape[-1] == 1:
        shape = shape[:-1]
    return shape
