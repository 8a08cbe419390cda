"""Faults of real runs in real processes: signals at any moment, kills, full disks. Nothing is lost on the way."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time

import pytest

from .command import ROOT, TINY, assert_same_bits, finish, metrics, run, signal_at, start

# 25 steps, evaluations at 10, 20 and 25 that take 63 batches each, checkpoints at 12, 24 and 25.
LONG_EVALUATION = (
    *TINY,
    "--config.data.examples=1000",
    "--config.train.batch_size=40",
    "--config.train.epochs=1",
    "--config.train.warmup_epochs=0",
    "--config.train.ema_decay=0.9",
    "--config.eval.every_epochs=0.4",
    "--config.checkpoint.every_epochs=0.5",
)
DELAY_SECONDS = 30  # between signal and exit; about one on an idle machine
KILLS = int(os.environ.get("FLATTEN_JAX_KILLS", "3"))


def timeless(workdir):
    """What must not depend on interruptions: evaluations, and the losses of steps that are logged one by one."""
    return [{k: v for k, v in r.items() if k != "perf/img_per_sec"} for r in metrics(workdir)]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    status, output = run(*LONG_EVALUATION, "--workdir", folder)
    assert status == 0, output
    return folder


@pytest.mark.slow
def test_signals_at_any_moment_save_and_the_run_goes_on_to_the_same_bits(undisturbed, tmp_path):
    command = (*LONG_EVALUATION, "--workdir", tmp_path)
    compiling = start(*command, JAX_ENABLE_COMPILATION_CACHE="0")
    status, output, seconds = signal_at(compiling, "the first step compiles", signal.SIGTERM)
    assert status == 143, output
    assert "SIGTERM: saving a checkpoint, then ending" in output
    assert f"step 0 of 25 is saved in {tmp_path}/checkpoints; the same command goes on from there" in output
    assert "compiled in" not in output
    assert seconds < DELAY_SECONDS

    status, output, seconds = signal_at(start(*command), "step 10/25", signal.SIGINT)
    assert status == 130, output
    assert "resuming at step 0" in output
    assert "step 10 of 25 is saved" in output
    assert "top-1" not in output, "the signal came after the evaluation"
    assert seconds < DELAY_SECONDS

    status, output, seconds = signal_at(start(*command), "step 13/25", signal.SIGTERM)
    assert status == 143, output
    assert "resuming at step 10" in output
    assert "step 10 (epoch 0.4): top-1" in output  # which the signal had cut short
    assert seconds < DELAY_SECONDS

    status, output = run(*command)
    assert status == 0, output
    assert "Traceback" not in output
    assert_same_bits(tmp_path, undisturbed)
    assert timeless(tmp_path) == timeless(undisturbed)


SIGNAL_ITSELF = """
import os, signal
from flatten_jax.training.preemption import Preemption
from flatten_jax.training.sharding import make_mesh
with Preemption(make_mesh()) as preemption:
    if {deferred}:
        preemption.defer()
        os.kill(os.getpid(), signal.SIGINT)
        print("still here", flush=True)
    os.kill(os.getpid(), signal.SIGTERM)
    print("too late")
"""


@pytest.mark.slow
@pytest.mark.parametrize(("deferred", "message"), [(True, "asked twice"), (False, "nothing to save")])
def test_a_second_signal_ends_at_once_and_so_does_one_before_there_is_a_state(deferred, message):
    code = SIGNAL_ITSELF.format(deferred=deferred)
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 143
    assert message in done.stderr
    assert ("still here" in done.stdout) == deferred
    assert "too late" not in done.stdout


@pytest.mark.slow
def test_kills_at_any_moment_lose_nothing(tmp_path):
    """SIGKILL after a checkpoint in the middle of an epoch, then at random moments of a start, of a step, of a save.

    KILLS times in all (FLATTEN_JAX_KILLS=20 for the full number); four steps are an epoch.
    """
    arguments = (*TINY, "--config.checkpoint.every_epochs=0.25", "--config.train.ema_decay=0.9")
    unbroken, broken = tmp_path / "unbroken", tmp_path / "broken"
    began = time.monotonic()
    status, output = run(*arguments, "--workdir", unbroken)
    assert status == 0, output
    duration = time.monotonic() - began

    process = start(*arguments, "--workdir", broken)
    while process.poll() is None and not (broken / "checkpoints" / "3" / "commit_success.txt").exists():
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    assert finish(process)[0] == -signal.SIGKILL, "the run ended before it could be killed"
    rng, killed = random.Random(0), 1
    while killed < KILLS:
        began, process = time.monotonic(), start(*arguments, "--workdir", broken)
        try:
            process.wait(rng.uniform(0.2, 0.9) * duration)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
        status, output = finish(process)
        assert status in (0, -signal.SIGKILL), output
        killed += status == -signal.SIGKILL
        if status == 0:  # at the end before it was killed: again from its oldest checkpoint
            duration = min(duration, time.monotonic() - began)
            steps = sorted((broken / "checkpoints").iterdir(), key=lambda folder: int(folder.name))
            for folder in steps[1:]:
                shutil.rmtree(folder)
    status, output = run(*arguments, "--workdir", broken)
    assert status == 0, output
    assert "resuming at step" in output
    assert_same_bits(broken, unbroken)
    assert timeless(broken) == timeless(unbroken)


@pytest.fixture
def small_disk(tmp_path):
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", folder], capture_output=True)
    if mount.returncode:
        pytest.skip(f"mounting takes more rights: {mount.stderr.decode()}")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


@pytest.mark.slow
def test_a_run_on_a_disk_that_fills_up_ends_with_one_clear_error(small_disk):
    status, output = run(*TINY, "--config.checkpoint.keep=9", "--workdir", small_disk)
    assert status == 1, output
    assert f"could not be saved in {small_disk}/checkpoints, where 0." in output
    assert "No space left on device\nThe checkpoints before it are whole: " in output


@pytest.mark.slow
def test_a_damaged_newest_checkpoint_is_named_and_the_run_goes_on_from_the_one_before(undisturbed, tmp_path):
    folder = shutil.copytree(undisturbed, tmp_path / "run")
    (folder / "checkpoints" / "25" / "state" / "manifest.ocdbt").write_bytes(b"")
    status, output = run(*LONG_EVALUATION, "--workdir", folder)
    assert status == 0, output
    assert "damaged checkpoint: step 25, leaf " in output
    assert "resuming at step 24" in output
    assert "finished 25 steps (1 of them now" in output
