"""main.py in real processes, for the tests of what only a process shows."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np

from flatten_jax.training.checkpoint import Checkpoints

ROOT = Path(__file__).parents[1]
TINY = (
    "--config=configs/flatten_deit_t.py:smoke",
    "--config.model.patch_size=16",
    "--config.model.embed_dim=16",
    "--config.model.depth=1",
    "--config.model.num_heads=2",
)
# Every process compiles the same few programs.
CACHE = {
    "JAX_COMPILATION_CACHE_DIR": jax.config.jax_compilation_cache_dir,  # of conftest.py
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
}


def start(*arguments, **environment):
    command = [sys.executable, "-u", "main.py", *map(str, arguments)]
    return subprocess.Popen(
        command,
        cwd=ROOT,
        env=os.environ | CACHE | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(process):
    """(exit status, what was printed) of a process that was started."""
    output, _ = process.communicate(timeout=300)
    return process.returncode, output


def run(*arguments, **environment):
    """(exit status, what was printed) of main.py."""
    return finish(start(*arguments, **environment))


def signal_at(process, text, number):
    """Send a signal when a line with `text` is printed. (exit status, what was printed, seconds from signal to end)."""
    printed = []
    for line in process.stdout:
        printed.append(line)
        if text in line:
            break
    process.send_signal(number)
    began = time.monotonic()
    status, rest = finish(process)
    return status, "".join(printed) + rest, time.monotonic() - began


def weights(workdir):
    checkpoints = Checkpoints(workdir / "checkpoints", read_only=True)
    return checkpoints.restore_weights(checkpoints.steps()[-1])


def metrics(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def assert_same_bits(workdir, other):
    """The whole state of the newest checkpoints: parameters, optimizer and moving average, by their manifests."""
    manifests = []
    for folder in (workdir, other):
        step = Checkpoints(folder / "checkpoints", read_only=True).newest()
        manifests.append(
            json.loads((folder / "checkpoints" / str(step) / "manifest" / "metadata").read_text())["leaves"]
        )
    assert manifests[0] == manifests[1]
    jax.tree.map(np.testing.assert_array_equal, weights(workdir), weights(other))
