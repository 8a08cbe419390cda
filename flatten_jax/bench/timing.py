"""Timing several things side by side, on machines that are noisy."""

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Spread:
    """Median, lowest and highest of repeated measurements."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: list[float]) -> "Spread":
        return cls(statistics.median(values), min(values), max(values))

    def __format__(self, spec: str) -> str:
        return f"{self.median:{spec}} ({self.low:{spec}}-{self.high:{spec}})"


def interleaved(
    contestants: Mapping[str, Callable[[], object]], *, rounds: int, at_least: float = 0.2, settle: float = 1.0
) -> dict[str, list[float]]:
    """Seconds a call of each contestant, once per round and in turn, so that a slow moment of the machine hits all.

    Args:
        contestants: name -> a call that returns when its work is done.
        rounds: measurements of each, after a warm-up.
        at_least: seconds; quick calls are repeated within a measurement until it takes about so long.
        settle: seconds; what is quicker is called once before each measurement too. The first call after one that used
            much more memory was seen to take 1.2 to 1.8 times as long as the next.
    """
    calls, settles = {}, {}
    for name, call in contestants.items():
        call()
        took = _seconds(call, 1)
        calls[name], settles[name] = max(1, round(at_least / took)), took < settle
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(rounds):
        for name, call in contestants.items():
            if settles[name]:
                call()
            seconds[name].append(_seconds(call, calls[name]) / calls[name])
    return seconds


def ratios(seconds: Mapping[str, list[float]], of: str, over: str) -> Spread:
    """How many times as long `of` takes as `over`, round by round."""
    return Spread.of([a / b for a, b in zip(seconds[of], seconds[over], strict=True)])


def _seconds(call: Callable[[], object], times: int) -> float:
    began = time.perf_counter()
    for _ in range(times):
        call()
    return time.perf_counter() - began
