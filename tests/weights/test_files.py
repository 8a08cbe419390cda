"""The public form of weights: safetensors with the config in the metadata, and the export to PyTorch's names."""

import hashlib
import json
import os
import stat
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open

import flatten_jax
from flatten_jax.weights import files, resample
from flatten_jax.weights.convert import from_torch
from flatten_jax.weights.files import convert_file, export_file, save_weights
from flatten_jax.weights.load import load_weights
from flatten_jax.weights.torch_file import read_torch

from .make_fixtures import OPTIONS, weights
from .small import equal, random_variables, tiny

HERE = Path(__file__).parent
NAME = "flatten_deit_t"


def metadata(path):
    with safe_open(path, "numpy") as file:
        return file.metadata()


def test_a_converted_file_gives_the_same_variables_and_says_where_they_are_from(tmp_path):
    target = tmp_path / "new" / "tiny.safetensors"
    report = convert_file(HERE / "release.pth", target, NAME, ema=True, **OPTIONS)
    equal(load_weights(target, tiny()), from_torch(weights("ema"), tiny()))
    assert f"matched {len(weights())}" in str(report)
    said = metadata(target)
    assert said["format"] == "flatten_jax"
    assert said["flatten_jax"] == flatten_jax.__version__
    assert said["model"] == NAME
    assert json.loads(said["options"]) == {**OPTIONS, "image_size": [16, 16]}
    assert said["source"] == "release.pth"
    assert said["source_sha256"] == hashlib.sha256((HERE / "release.pth").read_bytes()).hexdigest()
    assert said["licence"] == "weights of the FLatten release carry no licence; check before redistribution"


def test_export_gives_pytorch_names_and_the_very_numbers(tmp_path):
    ours, target = tmp_path / "ours.safetensors", tmp_path / "torch.safetensors"
    convert_file(HERE / "timm.pth", ours, NAME, **OPTIONS)
    export_file(ours, target)
    arrays, info = read_torch(target)
    assert info.metadata["format"] == "pt"
    equal(arrays, weights())
    export_file(from_torch(weights("ema"), tiny()), target, tiny(), overwrite=True)
    equal(read_torch(target)[0], weights("ema"))
    with pytest.raises(ValueError, match="do not say which model they are of: give its name"):
        export_file(from_torch(weights(), tiny()), target, overwrite=True)


def test_an_existing_file_is_kept(tmp_path):
    target = tmp_path / "x.safetensors"
    target.write_bytes(b"precious")
    for call in convert_file, export_file:
        with pytest.raises(ValueError, match=r"x\.safetensors exists already: .* overwrite=True \(--overwrite\)"):
            call(HERE / "timm.pth", target, NAME, **OPTIONS)
    assert target.read_bytes() == b"precious"
    convert_file(HERE / "timm.pth", target, NAME, overwrite=True, **OPTIONS)
    equal(load_weights(target, tiny()), from_torch(weights(), tiny()))
    with pytest.raises(ValueError, match=r"x\.npz must end in \.safetensors"):
        convert_file(HERE / "timm.pth", tmp_path / "x.npz", NAME, **OPTIONS)


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    target = tmp_path / "x.safetensors"
    target.write_bytes(b"precious")

    def disk_full(arrays, path, metadata):
        Path(path).write_bytes(b"half")
        raise OSError("no space left on device")

    monkeypatch.setattr(files, "save_file", disk_full)
    with pytest.raises(OSError, match="no space left"):
        convert_file(HERE / "timm.pth", target, NAME, overwrite=True, **OPTIONS)
    assert target.read_bytes() == b"precious"
    assert list(tmp_path.iterdir()) == [target]


def test_others_may_read_the_file_as_the_umask_says(tmp_path):
    target, old = tmp_path / "x.safetensors", os.umask(0o022)
    try:
        convert_file(HERE / "timm.pth", target, NAME, **OPTIONS)
    finally:
        os.umask(old)
    assert stat.S_IMODE(target.stat().st_mode) == 0o644


def test_a_file_of_ours_knows_its_own_grid(tmp_path):
    # 36 tokens would be taken for 6 x 6 without it.
    target, small = tmp_path / "x.safetensors", tiny(image_size=(16, 36))
    variables = random_variables(small)
    save_weights(target, variables, NAME, {**OPTIONS, "image_size": (16, 36)})
    loaded = load_weights(target, tiny(image_size=(24, 32)))
    np.testing.assert_array_equal(
        loaded["params"]["pos_embed"],
        resample.resample_tokens(variables["params"]["pos_embed"], (4, 9), (6, 8)),
    )


def test_a_file_of_ours_is_converted_to_another_size_without_naming_the_model(tmp_path):
    first, second = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    convert_file(HERE / "timm.pth", first, NAME, **OPTIONS)
    report = convert_file(first, second, image_size=(24, 32), num_classes=5, new_head=True)
    assert len(report.resampled) == 3
    assert json.loads(metadata(second)["options"])["image_size"] == [24, 32]
    load_weights(second, tiny(image_size=(24, 32), num_classes=5))


def test_a_file_of_ours_is_not_loaded_into_another_function(tmp_path):
    target = tmp_path / "x.safetensors"
    convert_file(HERE / "timm.pth", target, NAME, **OPTIONS)
    with pytest.raises(ValueError, match=r"with focusing_factor=3\S* \(the model has 4\): give create_model the same"):
        load_weights(target, tiny(focusing_factor=4))
    with pytest.raises(ValueError, match="holds flatten_deit_t, a DeiT; the model is a PVT"):
        load_weights(target, flatten_jax.create_model("flatten_pvt_t"))
