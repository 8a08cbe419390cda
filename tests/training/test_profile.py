"""Which steps are traced, and that a trace never ends a training."""

import contextlib

import jax
import pytest

from flatten_jax.training import profile


@pytest.mark.parametrize(("text", "steps"), [("10-12", (10, 12)), ("3", (3, 3)), (" 1-1 ", (1, 1))])
def test_steps_are_first_and_last(text, steps):
    assert profile.parse(text) == steps


@pytest.mark.parametrize("text", ["", "a-b", "0-3", "5-3", "1-2-3", "-3", "1.5-2"])
def test_other_text_is_refused(text):
    with pytest.raises(ValueError, match=f"--profile={text} must be the first and the last step"):
        profile.parse(text)


def test_steps_that_a_run_does_not_take_are_refused():
    profile.check(None, 12, 12)
    profile.check((1, 12), 0, 12)
    profile.check((5, 5), 4, 12)
    for wanted, start, said in (
        ((10, 13), 0, "--profile=10-13 is not of this run, which has steps 1 to 12 before it"),
        ((4, 6), 4, "--profile=4-6 is not of this run, which has steps 5 to 12 before it"),
        ((3, 4), 12, "--profile=3-4 is not of this run, which is finished, after step 12"),
    ):
        with pytest.raises(ValueError) as error:
            profile.check(wanted, start, 12)
        assert str(error.value) == said


def run(monkeypatch, folder, wanted, stop_at=None, start_trace=None):
    """What happens in a run of five steps, ended before it has taken step `stop_at`."""
    happened = []
    monkeypatch.setattr(jax.profiler, "start_trace", start_trace or (lambda path: happened.append(("start", path))))
    monkeypatch.setattr(jax.profiler, "stop_trace", lambda: happened.append("stop"))
    steps = profile.traced(range(1, 6), wanted, folder, lambda: happened.append("wait"))
    with contextlib.suppress(InterruptedError), contextlib.closing(steps):
        for step in steps:
            if step == stop_at:
                raise InterruptedError
            happened.append(step)
    return happened


def test_the_trace_holds_whole_steps_and_no_others(monkeypatch, tmp_path, capsys):
    assert run(monkeypatch, tmp_path, (2, 3)) == [1, "wait", ("start", tmp_path), 2, 3, "wait", "stop", 4, 5]
    assert capsys.readouterr().out == f"steps 2 to 3 are traced: xprof --logdir={tmp_path}   # pip install xprof\n"
    assert run(monkeypatch, tmp_path, None) == [1, 2, 3, 4, 5]


def test_a_run_that_ends_early_ends_its_trace(monkeypatch, tmp_path):
    assert run(monkeypatch, tmp_path, (2, 4), stop_at=3) == [1, "wait", ("start", tmp_path), 2, "stop"]
    assert run(monkeypatch, tmp_path, (2, 3), stop_at=5) == [1, "wait", ("start", tmp_path), 2, 3, "wait", "stop", 4]


def test_a_trace_that_cannot_be_written_is_said_and_the_training_goes_on(monkeypatch, tmp_path, caplog):
    def full(path):
        raise OSError("No space left on device")

    assert run(monkeypatch, tmp_path, (2, 3), start_trace=full) == [1, "wait", 2, 3, 4, 5]
    assert "cannot be written, the training goes on without: No space left on device" in caplog.text
