"""Checkpoints hold everything, keep what they should, and give weights away strictly."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flatten_jax.models import create_model, dummy_images
from flatten_jax.training.checkpoint import Checkpoints, find, load_weights, save_weights
from flatten_jax.training.step import TrainState

POSITION = {"step": 1, "epoch": 0}


def state_at(step, ema=True):
    params = {"body": {"kernel": jnp.arange(6.0).reshape(2, 3) + step}, "head": {"bias": jnp.full(4, 1.0 * step)}}
    average = jax.tree.map(lambda x: x + 0.5, params) if ema else None
    return TrainState(jnp.int32(step), params, {}, {"mu": params, "count": jnp.int32(step)}, average)


def save(folder, accuracies, keep=2):
    checkpoints = Checkpoints(folder, keep=keep)
    for step, accuracy in accuracies.items():
        metrics = None if accuracy is None else {"eval/acc1": accuracy}
        checkpoints.save(state_at(step), POSITION | {"step": step}, metrics)
    checkpoints.wait()
    return checkpoints


def test_what_was_saved_comes_back_bit_for_bit(tmp_path):
    save(tmp_path, {7: 50.0}).close()
    checkpoints = Checkpoints(tmp_path)
    target = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state_at(7))
    restored = checkpoints.restore(7, target)
    jax.tree.map(np.testing.assert_array_equal, restored, state_at(7))
    assert isinstance(restored, TrainState)
    assert checkpoints.position(7) == {"step": 7, "epoch": 0}


def test_newest_and_best_are_kept(tmp_path):
    checkpoints = save(tmp_path, {1: 10.0, 2: 90.0, 3: 20.0, 4: None, 5: 30.0})
    assert checkpoints.steps() == [2, 4, 5]
    assert checkpoints.best() == (2, {"eval/acc1": 90.0})


def test_a_step_that_exists_is_never_overwritten_in_silence(tmp_path):
    with pytest.raises(FileExistsError, match="5 exists already"):
        save(tmp_path, {5: None}).save(state_at(5), POSITION, None)


def test_missing_step_says_what_there_is(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no step 3; it has \[5\]"):
        save(tmp_path, {5: None}).position(3)


@pytest.mark.parametrize("path", ["", "checkpoints", "checkpoints/2"])
def test_a_checkpoint_is_found_by_run_folder_or_step(tmp_path, path):
    save(tmp_path / "checkpoints", {1: None, 2: None})
    assert find(tmp_path / path) == (tmp_path / "checkpoints", 2)


def test_no_checkpoint_is_a_clear_error(tmp_path):
    with pytest.raises(FileNotFoundError, match="no checkpoint in"):
        find(tmp_path)


@pytest.fixture
def model():
    return create_model("flatten_deit_t", embed_dim=8, depth=1, num_heads=2, image_size=32, num_classes=4)


def save_run(folder, model, *, ema):
    """A run of `model` at step 2; its moving average is its parameters plus one half."""
    params = model.init(jax.random.key(0), dummy_images(model))["params"]
    average = jax.tree.map(lambda x: x + 0.5, params) if ema else None
    checkpoints = Checkpoints(folder / "checkpoints")
    checkpoints.save(TrainState(jnp.int32(2), params, {}, {"mu": params}, average), POSITION, None)
    checkpoints.close()
    return params, average


@pytest.mark.parametrize("ema", [True, False])
def test_weights_of_a_run_are_its_moving_average_if_it_has_one(tmp_path, model, ema):
    params, average = save_run(tmp_path, model, ema=ema)
    weights, said = load_weights(tmp_path, model)
    jax.tree.map(np.testing.assert_array_equal, weights, {"params": average if ema else params})
    assert f"{tmp_path}/checkpoints/2" in said
    assert f"matched {len(jax.tree.leaves(params))}" in said


def test_weights_of_another_model_are_refused_with_the_place_they_came_from(tmp_path, model):
    save_run(tmp_path, model, ema=False)
    with pytest.raises(ValueError, match=rf"(?s){tmp_path}/checkpoints/2.*missing.*blocks_1/attn/dwc/bias"):
        load_weights(tmp_path, model.clone(depth=2))


def test_new_head_only_when_asked(tmp_path, model):
    params, _ = save_run(tmp_path, model, ema=False)
    other = model.clone(num_classes=9)
    with pytest.raises(ValueError, match=r"head/bias: \(4,\) given, \(9,\) expected.*"):
        load_weights(tmp_path, other)
    weights, said = load_weights(tmp_path, other, new_head=True)
    assert weights["params"]["head"]["kernel"].shape == (8, 9)
    jax.tree.map(np.testing.assert_array_equal, weights["params"]["blocks_0"], params["blocks_0"])
    assert "made new 2: " in said


def test_saved_weights_alone_can_be_loaded(tmp_path, model):
    variables = model.init(jax.random.key(0), dummy_images(model))
    save_weights(tmp_path, variables)
    jax.tree.map(np.testing.assert_array_equal, load_weights(tmp_path, model)[0], variables)


def test_weights_of_a_run_of_another_rectangle_are_resampled_from_its_grid(tmp_path):
    """16 x 64 pixels have as many tokens as 32 x 32: only the run's config tells them apart."""
    options = dict(embed_dim=8, depth=1, num_heads=2, num_classes=4, patch_size=8)
    wide = create_model("flatten_deit_t", image_size=(16, 64), **options)
    save_run(tmp_path, wide, ema=False)
    config = {"model": {"name": "flatten_deit_t", "image_size": [16, 64], **options}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    weights, said = load_weights(tmp_path, create_model("flatten_deit_t", image_size=(32, 128), **options))
    assert "resampled 2" in said
    encoding = load_weights(tmp_path, wide)[0]["params"]["pos_embed"]
    middle = weights["params"]["pos_embed"].reshape(4, 16, 8)[1:3].mean(0)
    np.testing.assert_allclose(middle.mean(), encoding.mean(), atol=0.01)


def test_weights_of_a_run_with_another_attention_of_the_same_shapes_are_refused(tmp_path, model):
    save_run(tmp_path, model, ema=False)
    options = dict(embed_dim=8, depth=1, num_heads=2, image_size=[32, 32], num_classes=4, focusing_factor=4.0)
    (tmp_path / "config.json").write_text(json.dumps({"model": {"name": "flatten_deit_t", **options}}))
    with pytest.raises(ValueError, match="focusing_factor=4"):
        load_weights(tmp_path, model)
