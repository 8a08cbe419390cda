import pytest

from flatten_jax.bench import timing


def test_contestants_take_turns(monkeypatch):
    """By a clock that only the contestants move."""
    clock, log = [0.0], []

    def contestant(name, seconds):
        def call():
            log.append(name)
            clock[0] += seconds

        return call

    monkeypatch.setattr(timing.time, "perf_counter", lambda: clock[0])
    calls = {"quick": contestant("quick", 0.05), "slow": contestant("slow", 2.0)}
    seconds = timing.interleaved(calls, rounds=2, at_least=0.2, settle=1.0)
    assert seconds == {"quick": pytest.approx([0.05] * 2), "slow": pytest.approx([2.0] * 2)}
    warm_up, a_round = ["quick"] * 2 + ["slow"] * 2, ["quick"] * (1 + 4) + ["slow"]
    assert log == warm_up + 2 * a_round
    assert timing.ratios(seconds, "slow", "quick").median == pytest.approx(40)


def test_spread_is_median_and_extremes():
    assert timing.Spread.of([5.0, 1.0, 2.0]) == timing.Spread(2.0, 1.0, 5.0)
    assert f"{timing.Spread(2.0, 1.0, 5.0):.1f}" == "2.0 (1.0-5.0)"
