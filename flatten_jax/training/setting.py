"""What a setting of a config may be, and how that is said."""

import math
from typing import Any, NamedTuple

# The section `augment` of a config that changes neither pictures nor labels.
NO_AUGMENTATION = {
    "scale": (1.0, 1.0),
    "ratio": (1.0, 1.0),
    "hflip": 0.0,
    "rand_augment": "",
    "erase_prob": 0.0,
    "mixup": 0.0,
    "cutmix": 0.0,
    "label_smoothing": 0.0,
}


class Setting(NamedTuple):
    """What a setting may be.

    Attributes:
        kind: int, float, bool, str; tuple: (low, high) in ascending order; list: (red, green, blue).
        values: of numbers an interval such as "[0, 1)", which each entry of a tuple has to be in; of text the words to
            choose from, as "a | b". "": any.
        meaning: one line.
        before: the value that runs have which were started before there was the setting; None: it was always there.
    """

    kind: type
    values: str
    meaning: str
    before: Any = None

    @property
    def allowed(self) -> str:
        """In words: "a number in [0, 1)"."""
        if self.kind is str:
            return f"one of {self.values.replace(' | ', ', ')}" if self.values else "text"
        noun = {int: "a whole number", float: "a number", bool: "True or False"}
        noun |= {tuple: "(low, high), low <= high", list: "three numbers, (red, green, blue)"}
        low, _, high = self.values[1:-1].partition(", ")
        if high == "inf":
            finite = " and finite" if self.kind is float else ""
            return f"{noun[self.kind]}, {'at least' if self.values[0] == '[' else 'above'} {low}{finite}"
        return (
            f"{noun[self.kind]}{',' * (self.kind in (tuple, list))} in {self.values}"
            if self.values
            else noun[self.kind]
        )

    def takes(self, value: Any) -> bool:
        if self.kind is str:
            return isinstance(value, str) and (not self.values or value in self.values.split(" | "))
        if self.kind is bool:
            return isinstance(value, bool)
        if self.kind is list:
            return isinstance(value, tuple | list) and len(value) == 3 and all(map(self._has, value))
        if self.kind is tuple:
            numbers = isinstance(value, tuple | list) and len(value) == 2 and all(map(self._has, value))
            return numbers and value[0] <= value[1]
        return self._has(value)

    def _has(self, value: Any) -> bool:
        """Whether a number is in the interval."""
        kinds = int if self.kind is int else int | float
        if not isinstance(value, kinds) or isinstance(value, bool) or not math.isfinite(value):
            return False
        low, high = map(float, self.values[1:-1].split(", "))
        return (low < value or (low == value and self.values[0] == "[")) and (
            value < high or (high == value and self.values[-1] == "]")
        )
