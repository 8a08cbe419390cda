"""One run in a folder at a time."""

import os
import signal
import subprocess
import sys

import pytest

from flatten_jax.training import lock, loop, setup

HOLD = """
import importlib.util, sys, time
from pathlib import Path
spec = importlib.util.spec_from_file_location("lock", sys.argv[2])  # alone: the package would start JAX
lock = importlib.util.module_from_spec(spec)
spec.loader.exec_module(lock)
with lock.only_run_in(Path(sys.argv[1])) as other:
    print("other: " + other, flush=True)
    time.sleep(600)
"""


@pytest.fixture
def holder(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "PATIENCE", 0.1)
    command = [sys.executable, "-c", HOLD, str(tmp_path), lock.__file__]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "other: \n"
    yield process
    process.kill()
    process.wait()


def test_a_second_run_is_told_who_has_the_folder(holder, tmp_path, tiny_config):
    with pytest.raises(ValueError) as error:
        loop.train(setup.prepare(tiny_config), str(tmp_path))
    said = str(error.value)
    assert said.startswith(f"{tmp_path} is in use by process {holder.pid} of ") and "\n" not in said
    assert os.uname().nodename in said
    assert [path.name for path in tmp_path.iterdir()] == [lock.LOCK_FILE], "nothing was touched"


def test_a_killed_process_leaves_no_lock(holder, tmp_path):
    with lock.only_run_in(tmp_path) as other:
        assert f"process {holder.pid}" in other
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    for _ in range(2):  # nor one that ended in order
        with lock.only_run_in(tmp_path) as other:
            assert other == ""
            assert f"process {os.getpid()}" in (tmp_path / lock.LOCK_FILE).read_text()


def test_a_process_that_is_about_to_end_is_waited_for(holder, tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "PATIENCE", 30)
    holder.terminate()
    with lock.only_run_in(tmp_path) as other:
        assert other == ""


def test_a_file_system_without_locks_is_warned_of(tmp_path, monkeypatch, caplog):
    def refuse(*_):
        raise OSError(lock.errno.ENOLCK, "No locks available")

    monkeypatch.setattr(lock.fcntl, "flock", refuse)
    with lock.only_run_in(tmp_path) as other:
        assert other == ""
    assert "cannot be locked" in caplog.text


def test_the_command_is_named_as_it_was_typed_and_cut_at_a_word(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["main.py", "--config=/somewhere/flatten_jax/training/run_config.py:runs/a"])
    monkeypatch.setattr(sys, "orig_argv", ["python", "main.py", "--workdir", "my runs/a"])
    assert lock.who().endswith(" (python main.py --workdir 'my runs/a')")
    monkeypatch.setattr(sys, "orig_argv", ["python", "main.py", *["--config.checkpoint.every-epochs=20"] * 9])
    command = lock.who().partition("(")[2].removesuffix(" ...)")
    assert len(command) <= 200 and set(command.split()[2:]) == {"--config.checkpoint.every-epochs=20"}


def test_a_folder_without_a_checkpoint_is_said_to_start_from_the_beginning(tmp_path, tiny_config, monkeypatch, capsys):
    def killed(*_):
        raise MemoryError

    monkeypatch.setattr(loop, "_start", killed)
    run = setup.prepare(tiny_config)
    for again in (False, True):
        with pytest.raises(MemoryError):
            loop.train(run, str(tmp_path))
        assert ("nothing was saved yet: it starts from the beginning" in capsys.readouterr().out) == again
