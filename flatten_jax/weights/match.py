"""Strict matching of named arrays."""

from collections.abc import Iterable, Mapping

Shape = tuple[int, ...]
_MOST = 6  # names of a kind that are said


def check_entries(
    what: str, given: Mapping[str, Shape], wanted: Mapping[str, Shape], remade: Iterable[str] = (), hint: str = ""
) -> None:
    """ValueError unless both name the same entries with the same shapes; it counts what is wrong, and names some of it.

    Args:
        what: opens the message, such as "weights.pth does not fit PVT".
        given, wanted: name -> shape.
        remade: names of `wanted` that need not be given, and may be given with any shape.
        hint: ends the message.
    """
    problems = {
        "missing": [name for name in wanted if name not in given and name not in remade],
        "unexpected": [name for name in given if name not in wanted],
        "misshapen": [
            f"{name}: {tuple(given[name])} given, {tuple(shape)} expected"
            for name, shape in wanted.items()
            if name in given and name not in remade and tuple(given[name]) != tuple(shape)
        ],
    }
    if any(problems.values()):
        lists = "".join(f"\n  {kind} ({len(names)}): {_some(names)}" for kind, names in problems.items() if names)
        raise ValueError(f"{what}:{lists}{hint}")


def _some(names: list[str]) -> str:
    more = f" and {len(names) - _MOST} more" if len(names) > _MOST else ""
    return ", ".join(names[:_MOST]) + more
