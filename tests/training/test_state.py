"""What a model has besides parameters goes through training: running statistics change, constants do not."""

import json
import tarfile
from pathlib import Path

import jax
import numpy as np
import pytest

from flatten_jax.models.images import normalize
from flatten_jax.models.registry import MODELS
from flatten_jax.training import loop, setup, sharding
from flatten_jax.training.checkpoint import Checkpoints, load_weights, save_weights
from flatten_jax.training.evaluate import evaluate, make_eval_step
from flatten_jax.training.integrity import make_manifest, named_leaves, read_manifest
from flatten_jax.training.sharding import make_mesh, put_batch, to_host
from flatten_jax.training.step import abstract_state, init_state, make_train_step

from ..toy import MOMENTUM, TOY, patch_statistics, toy_config
from .conftest import tiny

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (16, 16, 16, 3), np.uint8) * np.linspace(0.3, 1, 16)[:, None, None, None]
BATCH = {"image": IMAGES.astype(np.uint8), "label": np.arange(16, dtype=np.int32) % 4}
EQUAL = np.testing.assert_array_equal


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    monkeypatch.setitem(MODELS, "toy", TOY)


@pytest.fixture
def config():
    config = toy_config()
    config.train.batch_size = 16
    return config


def training_of(config, devices=1, fsdp=1):
    mesh = make_mesh(jax.devices()[:devices], fsdp=fsdp)
    return setup.training_of(config, setup.model_of(config), mesh, steps_per_epoch=5)


def go_on(training, state, steps):
    """The states after each of some steps."""
    step, states = make_train_step(training), []
    for _ in range(steps):
        state, _ = step(state, put_batch(BATCH, training.mesh))
        states.append(to_host(state))
    return states


def run_steps(config, steps=2, **devices):
    training = training_of(config, **devices)
    state = init_state(training)
    return [to_host(state), *go_on(training, state, steps)]


def close(ours, theirs, **tolerance):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, **{"rtol": 1e-4, "atol": 1e-5, **tolerance}), ours, theirs
    )


def moved(statistics, params, images):
    """Running statistics after a part of a batch."""
    here = patch_statistics(params, normalize(images))
    return [(1 - MOMENTUM) * old + MOMENTUM * new for old, new in zip(statistics, here, strict=True)]


def statistics(state):
    return [state.state["batch_stats"]["bn"][name] for name in ("mean", "var")]


def test_training_moves_running_statistics_and_no_constants(config):
    before, after = run_steps(config, steps=1)
    close(statistics(after), moved(statistics(before), before.params, BATCH["image"]))
    assert np.abs(statistics(after)[0]).max() > 0.01
    EQUAL(after.state["constants"]["matrix"], before.state["constants"]["matrix"])
    assert named_leaves(after.params).keys() == named_leaves(before.params).keys()


def test_with_accumulation_every_part_moves_them_in_turn(config):
    config.train.accumulation = 2
    before, after = run_steps(config, steps=1)
    expected = statistics(before)
    for part in (0, 1):
        expected = moved(expected, before.params, BATCH["image"][part::2])
    close(statistics(after), expected)
    largest = np.abs(expected[0]).max()
    assert np.abs(moved(statistics(before), before.params, BATCH["image"])[0] - expected[0]).max() > 0.1 * largest


@pytest.mark.parametrize("accumulation", [1, 2])
def test_eight_devices_normalise_by_the_batch_of_all(config, monkeypatch, accumulation):
    config.train.update(accumulation=accumulation, ema_decay=0.9)
    alone = run_steps(config)[-1]
    monkeypatch.setattr(sharding, "SHARDED_SIZE", 32)
    eight = run_steps(config, devices=8, fsdp=2)[-1]
    for name in ("params", "state", "ema", "ema_state"):
        close(getattr(eight, name), getattr(alone, name), atol=2e-4)


def test_evaluation_uses_the_running_statistics_whatever_batch_a_picture_is_in(config):
    training = training_of(config)
    state = go_on(training, init_state(training), 2)[-1]
    step = make_eval_step(training.task, training.mesh)
    batch = {**BATCH, "mask": np.ones(16, bool)}
    halves = [jax.tree.map(lambda x, half=half: x[half], batch) for half in (slice(8), slice(8, 16))]

    def loss(variables, batches):
        return evaluate(training.task, step, variables, [put_batch(b, training.mesh) for b in batches], 16)["loss"]

    whole = loss(state.variables, [batch])
    assert loss(state.variables, halves) == pytest.approx(whole, rel=1e-5)
    others = {**state.variables, "batch_stats": jax.tree.map(lambda x: x + 1, state.state["batch_stats"])}
    assert abs(loss(others, [batch]) - whole) > 1e-3


def test_moving_average_is_of_parameters_and_statistics_and_constants_are_the_models(config):
    config.train.ema_decay = 0.75
    start, *states = run_steps(config, steps=3)
    expected = {name: start.variables[name] for name in ("params", "batch_stats")}
    for state in states:
        latest = {name: state.variables[name] for name in expected}
        expected = jax.tree.map(lambda old, new: 0.75 * old + 0.25 * new, expected, latest)
    averaged = states[-1].averaged
    close({name: averaged[name] for name in expected}, expected)
    EQUAL(averaged["constants"]["matrix"], start.state["constants"]["matrix"])
    assert start.averaged.keys() == start.variables.keys()


def test_a_skipped_step_keeps_the_statistics(config):
    config.train.update(skip_nonfinite_steps=1, ema_decay=0.9)
    config.optimizer.learning_rate = 1e30  # the norm of the updates overflows
    before, after = run_steps(config, steps=1)
    assert after.step == 1
    jax.tree.map(EQUAL, after.replace(step=before.step), before)


def test_a_run_that_is_resumed_has_the_bits_of_an_unbroken_one(config, tmp_path):
    config.train.update(ema_decay=0.9, accumulation=2)
    training = training_of(config, devices=8)
    *_, unbroken = go_on(training, init_state(training), 4)
    *_, half = go_on(training, init_state(training), 2)
    with_checkpoints(tmp_path, half)
    resumed = Checkpoints(tmp_path).restore(2, abstract_state(training))
    jax.tree.map(EQUAL, to_host(resumed), half)
    jax.tree.map(EQUAL, go_on(training, resumed, 2)[-1], unbroken)


def with_checkpoints(folder, state):
    checkpoints = Checkpoints(folder)
    checkpoints.save(state, {"step": int(state.step)}, None)
    checkpoints.close()


def test_weights_of_a_run_are_all_variables_and_a_new_run_starts_from_them(config, tmp_path):
    config.train.ema_decay = 0.9
    state = run_steps(config)[-1]
    with_checkpoints(tmp_path / "checkpoints", state)
    training = training_of(config)
    variables, said = load_weights(tmp_path, training.task.model)
    jax.tree.map(EQUAL, variables, state.averaged)
    assert "matched 11" in said
    new = init_state(training, variables)
    jax.tree.map(EQUAL, to_host([new.variables, new.averaged]), [state.averaged] * 2)
    save_weights(tmp_path / "alone", variables)
    jax.tree.map(EQUAL, load_weights(tmp_path / "alone", training.task.model)[0], variables)


@pytest.fixture
def older(tmp_path):
    """A run that stopped at step 6 of 10, of the version before TrainState had `state`; and its config.

    Written by commit d56adae: loop.train(prepare(config), folder) on one CPU, then all but this step deleted.
    """
    with tarfile.open(Path(__file__).with_name("run_before_state.tar.xz")) as archive:
        archive.extractall(tmp_path, filter="data")
    config = tiny()
    config.model.update(embed_dim=4, patch_size=8, kernel_size=3, mlp_ratio=1.0)
    config.train.ema_decay = 0.9
    config.checkpoint.every_epochs = 0.6
    return tmp_path / "run", config


def test_a_checkpoint_of_the_version_before_is_restored_and_saved_again_as_it_was(older, tmp_path):
    folder, config = older
    checkpoints = Checkpoints(folder / "checkpoints")
    state = checkpoints.restore(checkpoints.newest(), abstract_state(setup.prepare(config).training))
    written = read_manifest(checkpoints.folder / "6")
    assert make_manifest(state) == written
    assert (state.state, state.ema_state) == ({}, {})
    with_checkpoints(tmp_path / "again", state)
    ours, theirs = (
        json.loads((folder / "6" / "state" / "_METADATA").read_text())["tree_metadata"]
        for folder in (tmp_path / "again", folder / "checkpoints")
    )
    assert {name: leaf["key_metadata"] for name, leaf in ours.items()} == {
        name: leaf["key_metadata"] for name, leaf in theirs.items()
    }


@pytest.mark.slow
def test_a_run_of_the_version_before_goes_on_to_its_result(older, capsys):
    folder, config = older
    loop.train(setup.prepare(config), str(folder))
    assert "resuming at step 6" in capsys.readouterr().out
    evaluation = Checkpoints(folder / "checkpoints").evaluation(10)
    assert evaluation["eval/loss"] == pytest.approx(1.400892162322998, rel=1e-5)
    assert evaluation["eval_raw/loss"] == pytest.approx(1.396143913269043, rel=1e-5)
