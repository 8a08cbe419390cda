"""`flatten-jax plan`. Tests of `bench` are beside those of what it calls."""

import subprocess
import sys
from pathlib import Path

import pytest

from flatten_jax.bench.plan import topology_devices
from flatten_jax.cli.config_file import read_config

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_plan_compiles_the_real_step_for_virtual_devices():
    command = [sys.executable, "-m", "flatten_jax.cli.main", "plan", "--config", "configs/flatten_deit_t.py:smoke"]
    command += ["--topology", "cpu:2", "--config.model.depth=1", "--config.mesh.fsdp=2"]
    command += ["--config.distill.weight=50", "--config.distill.teacher=elsewhere"]  # as of a converted model
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    cells = done.stdout.splitlines()[2].split(" | ")
    assert cells[:6] == ["| flatten_deit_t", "float32", "cpu:2", "2", "16", "8"]
    assert "all-gather" in cells[-2]
    assert "flatten_deit_t.py:smoke: without its teacher, whose weights and forward pass come on top" in done.stdout


@pytest.mark.parametrize(
    ("machine", "topology"),
    [
        ("v4-32", "16 chips, which is written v4:2x2x4"),
        ("v5litepod-16", "16 chips, which is written v5e:4x4"),
        ("v5e-16", "16 chips, which is written v5e:4x4"),
        ("v5p-8", "4 chips, which is written v5p:2x2x1"),
        ("v6e-8", "8 chips, which is written v6e:2x4"),
    ],
)
def test_names_of_machines_are_told_their_topology(machine, topology):
    with pytest.raises(ValueError, match=rf"^topology='{machine}' is {topology}$"):
        topology_devices(machine)


def test_overrides_of_a_config_are_read_and_a_typo_is_refused(monkeypatch):
    monkeypatch.chdir(ROOT)
    overrides = ["--config.model.depth=1", "--config.model.attn_type=linear"]
    config = read_config("configs/published.py:flatten_deit_t,smoke", overrides)
    assert (config.model.depth, config.model.attn_type, config.train.batch_size) == (1, "linear", 16)
    with pytest.raises(ValueError, match=r"is not a setting; did you mean 'model\.depth'"):
        read_config("configs/flatten_deit_t.py:smoke", ["--config.model.dept=1"])
