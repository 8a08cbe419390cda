"""Weights & Biases and Trackio by stand-ins, which write down how they are called."""

import importlib
import json
import sys

import pytest

from flatten_jax.training import agreement, run_config, tracker
from flatten_jax.training.metrics import MetricsWriter

STAND_IN = """
calls = []
def init(**options): calls.append(("init", options))
def log(values, step): calls.append(("log", step, values))
def finish(): calls.append(("finish",))
"""


@pytest.fixture(params=["wandb", "trackio"])
def stand_in(request, tmp_path, monkeypatch):
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules" / f"{request.param}.py").write_text(STAND_IN)
    monkeypatch.syspath_prepend(tmp_path / "modules")
    monkeypatch.delitem(sys.modules, request.param, raising=False)
    yield request.param
    sys.modules.pop(request.param, None)


def configured(config, name):
    config.tracker.update(name=name, project="insects")
    return config


def test_the_numbers_go_there_and_a_resumed_run_into_the_same_curves(stand_in, tiny_config, tmp_path):
    config, folder = configured(tiny_config, stand_in), tmp_path / "mine"
    folder.mkdir()
    tracker.check_installed(stand_in)
    for start in (0, 7):
        writer = MetricsWriter(folder, start, tracker.opener(config, folder))
        writer.write(start + 1, {"train/loss": 2.0})
        writer.close()
    calls = importlib.import_module(stand_in).calls
    assert [call for call in calls if call[0] != "init"] == [
        ("log", 1, {"train/loss": 2.0}),
        ("finish",),
        ("log", 8, {"train/loss": 2.0}),
        ("finish",),
    ]
    first, second = (options for word, *(options, *_) in (c for c in calls if c[0] == "init"))
    identity = json.loads((folder / "tracker.json").read_text())["id"]
    whose = (
        {"id": identity, "name": "mine", "dir": str(folder)} if stand_in == "wandb" else {"name": f"mine-{identity}"}
    )
    assert first == second == {"project": "insects", "config": config.to_dict(), "resume": "allow", **whose}


def test_none_is_asked_for_unless_named(stand_in, tiny_config, tmp_path):
    assert tracker.opener(tiny_config, tmp_path) is None
    tracker.check_installed("none")
    assert stand_in not in sys.modules


def test_one_that_fails_is_said_once_and_the_training_goes_on(stand_in, tiny_config, tmp_path, caplog, monkeypatch):
    module = importlib.import_module(stand_in)
    monkeypatch.setattr(module, "log", lambda values, step: 1 / 0)
    writer = MetricsWriter(tmp_path, 0, tracker.opener(configured(tiny_config, stand_in), tmp_path))
    for step in (1, 2):
        writer.write(step, {"train/loss": 1.0})
    assert caplog.messages == ["the tracker cannot be written, the training goes on without: division by zero"]
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 2


def test_a_run_from_before_there_were_trackers_goes_on(tiny_config, tmp_path):
    saved = json.loads(tiny_config.to_json_best_effort())
    del saved["tracker"], saved["data"]["mean"]
    (tmp_path / "config.json").write_text(json.dumps(saved))
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n')
    config = run_config.get_config(str(tmp_path))
    assert config.tracker.to_dict() == {"name": "none", "project": "flatten_jax"}
    agreement.claim(tmp_path, configured(config, "wandb"), ("a", "b"))


def test_what_is_not_installed_is_one_line(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("wandb", "trackio"):
        (tmp_path / name).mkdir()  # runs that wandb kept there: no module
        monkeypatch.setattr(sys, "path", [str(tmp_path)])
        with pytest.raises(ImportError, match=f"tracker.name='{name}' needs {name}, .*: pip install {name}, or leave"):
            tracker.check_installed(name)
