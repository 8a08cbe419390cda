"""The training step: the same on any number of devices, with and without accumulation."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from flatten_jax.models import create_model
from flatten_jax.training import sharding
from flatten_jax.training.setup import model_of, training_of
from flatten_jax.training.sharding import by_size, check_divisible, make_mesh, put_batch, to_host
from flatten_jax.training.step import abstract_state, init_state, make_train_step

from .conftest import tiny

BATCH = {
    "image": np.random.default_rng(0).integers(0, 256, (16, 16, 16, 3), np.uint8),
    "label": np.arange(16, dtype=np.int32) % 4,
}


def run_steps(config, devices, steps=3, fsdp=1):
    config.train.batch_size = len(BATCH["label"])
    mesh = make_mesh(jax.devices()[:devices], fsdp=fsdp)
    training = training_of(config, model_of(config), mesh, steps_per_epoch=5)
    state, step = init_state(training), make_train_step(training)
    states, losses = [to_host(state)], []
    for _ in range(steps):
        state, metrics = step(state, put_batch(BATCH, mesh))
        states.append(to_host(state))
        losses.append(float(metrics["loss"]))
    return states, losses


@pytest.fixture(scope="module")
def reference():
    """Three steps on one device."""
    return run_steps(tiny(), devices=1)


def agree(ours, theirs):
    np.testing.assert_allclose(ours[1], theirs[1], rtol=1e-5)
    largest = max(np.abs(a).max() for a in jax.tree.leaves(theirs[0][-1].params))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=2e-4 * largest), ours[0][-1].params, theirs[0][-1].params
    )


def test_eight_devices_do_what_one_does(tiny_config):
    """With everything random on: erasing, mixup or cutmix, drop-path."""
    tiny_config.augment.update(erase_prob=0.5, mixup=0.8, cutmix=1.0)
    tiny_config.model.update(drop_path=0.5, depth=2)
    agree(run_steps(tiny_config, devices=8), run_steps(tiny_config, devices=1))


def test_accumulation_does_what_one_batch_does(tiny_config, reference):
    tiny_config.train.accumulation = 2
    agree(run_steps(tiny_config, devices=8), reference)


@pytest.mark.slow
@pytest.mark.parametrize("accumulation", [1, 2])
def test_a_sharded_state_does_what_copies_do(tiny_config, reference, monkeypatch, accumulation):
    monkeypatch.setattr(sharding, "SHARDED_SIZE", 32)  # so that nearly all of this small model is sharded
    tiny_config.train.accumulation = accumulation
    agree(run_steps(tiny_config, devices=8, fsdp=2), reference)


def test_what_is_sharded_goes_by_size_along_the_longest_axis_that_divides():
    mesh = make_mesh(fsdp=4)
    shapes = {(256, 512): P(None, "fsdp"), (514, 256): P(None, "fsdp"), (512, 256): P("fsdp"), (128, 127): P()}
    shapes |= {(511, 511): P(), (2**14,): P("fsdp"), (2**14 - 4,): P()}
    for shape, spec in shapes.items():
        assert by_size(mesh, jax.ShapeDtypeStruct(shape, jnp.float32)).spec == spec, shape


def test_a_sharded_state_takes_its_share_of_the_memory():
    config = tiny()
    config.train.ema_decay = 0.9
    model = create_model("flatten_deit_t", depth=2)
    states = [abstract_state(training_of(config, model, make_mesh(fsdp=fsdp), 1)) for fsdp in (1, 8)]
    elements = [sum(math.prod(x.sharding.shard_shape(x.shape)) for x in jax.tree.leaves(state)) for state in states]
    assert elements[1] < 0.15 * elements[0]


def test_fsdp_that_the_devices_do_not_allow_is_refused():
    with pytest.raises(ValueError, match=r"mesh\.fsdp=3 does not divide the 8 devices"):
        make_mesh(fsdp=3)


def test_a_step_that_is_not_finite_changes_nothing_but_the_count_when_it_may_be_skipped(tiny_config):
    tiny_config.train.update(skip_nonfinite_steps=1, ema_decay=0.9)
    tiny_config.optimizer.update(learning_rate=1e30)  # the norm of the updates overflows
    (start, *_, last), losses = run_steps(tiny_config, devices=1)
    assert last.step == 3
    jax.tree.map(np.testing.assert_array_equal, last.replace(step=start.step), start)
    assert losses == [losses[0]] * 3


def test_rematerialisation_does_what_keeping_does(tiny_config, reference):
    tiny_config.model.remat = True
    agree(run_steps(tiny_config, devices=1), reference)


def test_the_same_seed_gives_the_same_bits_and_another_seed_does_not(tiny_config, reference):
    again, _ = run_steps(tiny_config, devices=1)
    jax.tree.map(np.testing.assert_array_equal, again[-1], reference[0][-1])
    tiny_config.seed = 1
    assert run_steps(tiny_config, devices=1)[1] != reference[1]


def test_moving_average_follows_its_formula(tiny_config):
    tiny_config.train.ema_decay = 0.9
    states, _ = run_steps(tiny_config, devices=1)
    ema = states[0].params
    for state in states[1:]:
        ema = jax.tree.map(lambda old, new: 0.9 * old + 0.1 * new, ema, state.params)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-7), state.ema, ema)


def test_bfloat16_computes_in_bfloat16_and_keeps_float32_parameters(tiny_config, reference):
    tiny_config.model.dtype = "bfloat16"
    states, losses = run_steps(tiny_config, devices=1)
    assert {leaf.dtype for leaf in jax.tree.leaves(states[-1].params)} == {jnp.dtype("float32")}
    np.testing.assert_allclose(losses, reference[1], rtol=2e-2)
    assert losses != reference[1]


def test_batch_that_the_devices_do_not_divide_is_refused():
    with pytest.raises(ValueError, match=r"train.batch_size=12 is not divisible by the 8 devices; try 8"):
        check_divisible(make_mesh(), **{"train.batch_size": 12})


def test_tpu_kernels_are_in_the_step_of_a_tpu_where_they_are_asked_for(tiny_config):
    """Forward and backward, over devices and in parts of a batch; on a CPU they are asked for in vain."""
    tiny_config.model.update(image_size=(112, 112), patch_size=4, dtype="bfloat16")
    tiny_config.model.update(embed_dim=16, num_heads=1, depth=1)
    tiny_config.train.update(batch_size=8, accumulation=2)
    mesh, counts = make_mesh(jax.devices()[:4]), {}
    for asked in (False, True):
        tiny_config.train.tpu_kernels = asked
        training = training_of(tiny_config, model_of(tiny_config), mesh, steps_per_epoch=5)
        traced = make_train_step(training).trace(abstract_state(training), training.task.abstract_batch(8, mesh))
        for platform in ("tpu", "cpu"):
            text = traced.lower(lowering_platforms=(platform,)).as_text()
            counts[asked, platform] = text.count("tpu_custom_call")
    assert counts == {(False, "tpu"): 0, (False, "cpu"): 0, (True, "tpu"): 2, (True, "cpu"): 0}
