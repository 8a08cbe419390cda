"""`flatten-jax convert` and `export`. Tests of `share` and of other exports are beside those of what they call."""

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from flatten_jax.cli.main import main
from flatten_jax.models import abstract_variables, create_model
from flatten_jax.training.checkpoint import load_weights, save_weights
from flatten_jax.weights.convert import to_torch


@pytest.mark.slow
def test_a_run_is_exported_and_converted_back(tmp_path, capsys):
    """A checkpoint folder -> PyTorch's names -> a checkpoint folder again, with the same weights."""
    model = create_model("flatten_deit_t", num_classes=3, image_size=32)
    rng = np.random.default_rng(0)
    shapes = abstract_variables(model)["params"]
    params = jax.tree.map(lambda x: rng.standard_normal(x.shape).astype(np.float32), shapes)
    save_weights(tmp_path / "run", {"params": params})
    arguments = ["--model", "flatten_deit_t", "--num-classes", "3", "--image-size", "32"]
    main(["export", str(tmp_path / "run"), str(tmp_path / "out.safetensors"), *arguments])
    exported, expected = load_file(tmp_path / "out.safetensors"), to_torch({"params": params}, model)
    assert exported.keys() == expected.keys()
    main(["convert", str(tmp_path / "out.safetensors"), str(tmp_path / "back"), "--to-orbax"])
    jax.tree.map(np.testing.assert_array_equal, load_weights(tmp_path / "back", model)[0]["params"], params)
    assert "matched" in capsys.readouterr().out
