"""The console command."""

import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from flatten_jax.cli.main import main
from flatten_jax.models import create_model, dummy_images
from flatten_jax.training.checkpoint import load_weights, save_weights
from flatten_jax.weights.convert import to_torch

ROOT = Path(__file__).parents[1]


def test_models_prints_the_published_sizes(capsys):
    main(["models", "flatten_deit_t"])
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("flatten_deit_t"))
    assert line.split()[1:6] == ["224", "6,190,888", "1.144", "74.1", "(paper)"]


def test_unknown_pattern_is_one_line():
    with pytest.raises(SystemExit, match="no model matches 'resnet"):
        main(["models", "resnet*"])


def test_argument_that_no_command_takes_is_refused(capsys):
    with pytest.raises(SystemExit):
        main(["models", "--colour"])
    assert "unrecognized arguments: --colour" in capsys.readouterr().err


def test_a_run_is_exported_and_converted_back(tmp_path, capsys):
    """A checkpoint folder -> PyTorch's names -> a checkpoint folder again, with the same weights."""
    model = create_model("flatten_deit_t", num_classes=3, image_size=32)
    params = jax.jit(model.init)(jax.random.key(0), dummy_images(model))["params"]
    save_weights(tmp_path / "run", {"params": params})
    arguments = ["--model", "flatten_deit_t", "--num-classes", "3", "--image-size", "32"]
    main(["export", str(tmp_path / "run"), str(tmp_path / "out.safetensors"), *arguments])
    exported, expected = load_file(tmp_path / "out.safetensors"), to_torch({"params": params}, model)
    assert exported.keys() == expected.keys()
    main(["convert", str(tmp_path / "out.safetensors"), str(tmp_path / "back"), "--to-orbax"])
    jax.tree.map(np.testing.assert_array_equal, load_weights(tmp_path / "back", model)[0]["params"], params)
    assert "matched" in capsys.readouterr().out


@pytest.mark.slow
def test_plan_compiles_the_real_step_for_virtual_devices():
    command = [sys.executable, "-m", "flatten_jax.cli.main", "plan", "--config", "configs/flatten_deit_t.py:smoke"]
    command += ["--topology", "cpu:2", "--config.model.depth=1", "--config.mesh.fsdp=2"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    cells = done.stdout.splitlines()[2].split(" | ")
    assert cells[:6] == ["| flatten_deit_t", "float32", "cpu:2", "2", "16", "8"]
    assert "all-gather" in cells[-2]


@pytest.mark.slow
def test_plan_refuses_a_typo_in_an_override():
    command = [sys.executable, "-m", "flatten_jax.cli.main", "plan", "--config", "configs/flatten_deit_t.py:smoke"]
    command += ["--topology", "cpu:2", "--config.model.dept=1"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 1
    assert 'Did you mean "depth"' in done.stderr
    assert "Traceback" not in done.stderr
