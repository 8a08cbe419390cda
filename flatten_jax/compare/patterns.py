"""Hybrids: which blocks of a model keep softmax, and where."""

import re

PLACES = ("first", "last", "evenly", "late-middle", "alternating")
LATE_MIDDLE = (0.6, 0.9)  # of the depth, where JetViT's search put full attention back


def pattern(place: str, depth: int, keep: int | None = None) -> str:
    """A letter for each block: L the linear attention that is compared, S softmax.

    Examples:
        >>> pattern("evenly", depth=12, keep=2)
        'LLLLLSLLLLLS'
        >>> pattern("3:1", depth=8)
        'LLLSLLLS'

    Args:
        place: "first" or "last"; "evenly", each softmax block closes a group; "late-middle", at .6 and .9 of the depth;
            "alternating", every second; "3:1", three linear blocks before each softmax block, and what is left linear;
            or the letters themselves.
        depth: the number of blocks, or of stages in a model of several.
        keep: how many softmax blocks, of "first", "last" and "evenly".

    Raises:
        ValueError: no such place, more blocks than there are, or a number where the place says it.
    """
    ratio = re.fullmatch(r"(\d+):1", place)
    letters = re.fullmatch(r"[LS]+", place)
    if place in PLACES[:3]:
        if keep is None or not 0 <= keep <= depth:
            raise ValueError(f"{place!r} needs a number of softmax blocks from 0 to {depth}, such as {place}:1")
    elif keep is not None:
        raise ValueError(f"{place!r} takes no number of softmax blocks, {keep=}: leave it out")
    if place == "first":
        kept = set(range(keep))
    elif place == "last":
        kept = set(range(depth - keep, depth))
    elif place == "evenly":
        kept = {(i + 1) * depth // keep - 1 for i in range(keep)}
    elif place == "late-middle":
        kept = {min(int(share * depth), depth - 1) for share in LATE_MIDDLE}
    elif place == "alternating":
        kept = set(range(1, depth, 2))
    elif ratio:
        kept = set(range(int(ratio[1]), depth, int(ratio[1]) + 1))
    elif letters:
        if len(place) != depth:
            raise ValueError(f"{place!r} has {len(place)} letters for {depth} blocks or stages")
        kept = {i for i, letter in enumerate(place) if letter == "S"}
    else:
        raise ValueError(f"{place!r} is no pattern: choose from {', '.join(PLACES)}, 3:1, or write letters, LLLS")
    return "".join("S" if i in kept else "L" for i in range(depth))


def parse(text: str, depth: int) -> str:
    """The letters of what a user writes: "evenly:2", "last:1", "alternating", "3:1", "LLLS"."""
    place, _, keep = text.rpartition(":")
    if place in PLACES and keep.isdecimal():
        return pattern(place, depth, int(keep))
    return pattern(text, depth)


def attn_type(letters: str, attention: str) -> str:
    """For `create_model`, an entry for each block (of a plain host) or stage: "LLS", "rala" -> "rala,rala,softmax"."""
    return ",".join("softmax" if letter == "S" else attention for letter in letters)
