"""The thousand classes of ImageNet-1k: their WordNet ids in the order of the labels, and names to read.

`imagenet_classes.txt` was made from the ids that TFDS lists and WordNet 3.0 (`names_of_wnids`); WordNet's licence is
beside it.
"""

import functools
from collections.abc import Iterable, Mapping
from importlib import resources

MAX_LEMMAS = 2


@functools.cache
def class_names() -> Mapping[str, str]:
    """{"n01440764": "tench, Tinca tinca", ...} in the order of the labels, which is that of the ids.

    Some share a name, such as crane, the bird and the machine: only the ids tell them apart.
    """
    text = resources.files("flatten_jax.data").joinpath("imagenet_classes.txt").read_text(encoding="utf-8")
    return dict(line.split("\t") for line in text.splitlines())


def names_of_wnids(wnids: Iterable[str], data_noun: Iterable[str]) -> dict[str, str]:
    """The first words of each synset, from the lines of WordNet's `data.noun`: an id is "n" and the line's offset.

    A line is offset, file number, part of speech, number of words in hex, then each word with its sense number
    (wndb(5WN)).
    """
    names = {}
    for line in data_noun:
        offset, _, _, count, *rest = line.split(" ", 4 + 2 * MAX_LEMMAS)
        if offset.isdecimal():  # not the licence at the top
            words = rest[: 2 * min(int(count, 16), MAX_LEMMAS) : 2]
            names[f"n{offset}"] = ", ".join(word.replace("_", " ") for word in words)
    return {wnid: names[wnid] for wnid in wnids}
