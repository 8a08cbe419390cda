"""Checkpoints hold everything, keep what they should, and give weights away strictly."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flatten_jax.training.checkpoint import Checkpoints, find, load_weights
from flatten_jax.training.step import TrainState

POSITION = {"step": 1, "epoch": 0}


def state_at(step, ema=True):
    params = {"body": {"kernel": jnp.arange(6.0).reshape(2, 3) + step}, "head": {"bias": jnp.full(4, 1.0 * step)}}
    average = jax.tree.map(lambda x: x + 0.5, params) if ema else None
    return TrainState(jnp.int32(step), params, {"mu": params, "count": jnp.int32(step)}, average)


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


def test_weights_for_fine_tuning_are_the_moving_average(tmp_path):
    save(tmp_path, {2: None}).close()
    weights, said = load_weights(tmp_path, state_at(0).params)
    jax.tree.map(np.testing.assert_array_equal, weights, state_at(2).ema)
    assert "loaded 2 of 2 arrays" in said
    assert f"{tmp_path}/2" in said


def test_weights_that_do_not_fit_are_listed_together(tmp_path):
    save(tmp_path, {2: None}).close()
    wanted = {"body": {"kernel": jnp.zeros((2, 4))}, "extra": jnp.zeros(1), "head": {"bias": jnp.zeros(4)}}
    wanted["head"]["kernel"] = wanted["head"].pop("bias")
    with pytest.raises(ValueError) as error:
        load_weights(tmp_path, wanted)
    for part in (
        "missing (2): extra, head/kernel",
        "unexpected (1): head/bias",
        "body/kernel: (2, 3) given, (2, 4) expected",
    ):
        assert part in str(error.value)


def test_new_head_only_when_asked(tmp_path):
    save(tmp_path, {2: None}).close()
    params = state_at(0).params
    params["head"]["bias"] = jnp.full(9, 3.0)
    with pytest.raises(ValueError, match="init_new_head"):
        load_weights(tmp_path, params)
    weights, said = load_weights(tmp_path, params, new_head=True)
    np.testing.assert_array_equal(weights["head"]["bias"], params["head"]["bias"])
    np.testing.assert_array_equal(weights["body"]["kernel"], state_at(2).ema["body"]["kernel"])
    assert "made new: head/bias" in said
