"""What the watch says, and that writing numbers never ends a training."""

import json
import subprocess

import numpy as np
import pytest

from flatten_jax.training import metrics
from flatten_jax.training.metrics import Meter, MetricsWriter, TrainingDiverged


def step_metrics(loss=1.0, update_norm=0.5):
    return {name: np.float32(loss) for name in ("loss", "learning_rate", "grad_norm")} | {"update_norm": update_norm}


@pytest.mark.parametrize("broken", [{"loss": np.nan}, {"update_norm": np.inf}])
def test_what_is_not_finite_ends_the_run(broken):
    meter = Meter(8)
    meter.add(1, step_metrics(), 0)
    meter.add(2, step_metrics(**broken), 0)
    with pytest.raises(TrainingDiverged, match=r"step 2 is not finite: grad_norm=.*, learning_rate=.*, loss="):
        meter.read()


def test_so_many_steps_may_be_skipped_and_no_more(caplog):
    meter = Meter(8, may_skip=2)
    for step, loss in enumerate([1.0, np.nan, 3.0, np.inf], start=1):
        meter.add(step, step_metrics(loss), 0)
    values = meter.read()
    assert (values["train/loss"], values["train/skipped_steps"]) == (2.0, 2.0)
    assert "step 2 is not finite and was skipped (1 of at most 2): grad_norm=nan" in caplog.text
    meter.add(5, step_metrics(np.nan), 0)
    with pytest.raises(TrainingDiverged, match="step 5"):
        meter.read()


def test_a_step_far_slower_than_the_median_is_reported_and_an_evaluation_is_no_step(monkeypatch, caplog):
    now = [0.0]
    monkeypatch.setattr(metrics.time, "monotonic", lambda: now[0])
    meter = Meter(8)
    for step in range(1, 40):
        now[0] += 30.0 if step == 31 else 0.2  # seen one step late
        meter.add(step, step_metrics(), 0)
        if step == 20:
            meter.read()
            now[0] += 500.0  # an evaluation
            meter.restart_clock()
    assert [m for m in caplog.messages if "took" in m] == [
        "step 30 took 30.0 s, the median of the steps before is 0.200 s"
    ]


def write_a_lot(folder):
    writer = MetricsWriter(folder, 0)
    for step in range(1, 1500):
        writer.write(step, {"train/loss": 1.0})
    writer.close()


@pytest.mark.parametrize("name", ["metrics.jsonl", "tensorboard"])
def test_a_place_that_cannot_be_written_is_said_once(tmp_path, caplog, name):
    if name == "tensorboard":
        (tmp_path / name).write_text("not a folder")
    else:
        (tmp_path / name).mkdir()
    write_a_lot(tmp_path)
    assert len(caplog.messages) == 1
    assert "cannot be written, the training goes on without" in caplog.text
    other = tmp_path / "tensorboard" if name == "metrics.jsonl" else tmp_path / "metrics.jsonl"
    assert other.exists()


def test_a_full_disk_is_said_once_for_each_log(tmp_path, caplog):
    mount = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", tmp_path], capture_output=True)
    if mount.returncode:
        pytest.skip(f"mounting takes more rights: {mount.stderr.decode()}")
    try:
        write_a_lot(tmp_path)
        assert json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[0]) == {"step": 1, "train/loss": 1.0}
    finally:
        subprocess.run(["umount", "-l", tmp_path], check=True)
    assert sorted(message.split()[0] for message in caplog.messages) == ["TensorBoard", "metrics.jsonl"]
    assert "No space left on device" in caplog.text
