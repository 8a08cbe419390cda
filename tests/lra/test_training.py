"""The arena's tasks in the one training loop: batches of tokens, and configs that do not fit them."""

import contextlib

import jax
import numpy as np
import pytest

from configs import lra_image, lra_listops
from flatten_jax.training import setup
from flatten_jax.training.tasks import ClassifyTokens


def listops():
    config = lra_listops.get_config("smoke")
    config.data.examples = 100
    config.model.update(image_size=(1, 1999), embed_dim=16, qkv_dim=16, num_heads=2)
    return config


def test_batches_of_sequences_are_tokens():
    run = setup.prepare(listops())
    assert isinstance(run.task, ClassifyTokens)
    assert (len(run.train_source), len(run.eval_source)) == (96, 2)
    train, (evaluation,) = run.abstract_batches()
    with contextlib.closing(run.train_batches(0)) as batches:
        batch, _ = next(batches)
    assert {name: (x.shape, x.dtype) for name, x in batch.items()} == {
        name: (x.shape, x.dtype) for name, x in train.items()
    }
    tokens = np.asarray(batch["image"])
    assert tokens.shape == (16, 1999) and tokens.max() < 16
    assert ((np.diff((tokens > 0).astype(int), axis=1) > 0).sum(axis=1) == 0).all()  # nothing behind what fills up
    shapes = jax.eval_shape(run.model.init, jax.random.key(0), run.task.given(batch))
    sums = jax.eval_shape(run.task.sums, shapes, evaluation)
    assert set(sums) == {"loss", "acc1", "acc5", "count"}


def test_pictures_become_tokens_of_their_grey_values():
    config = lra_image.get_config("smoke")
    config.data.examples = 32
    run = setup.prepare(config)
    with contextlib.closing(run.eval_batches()) as batches:
        batch = next(batches)
    assert batch["image"].shape == (32, 1024) and batch["image"].dtype == np.uint8
    grey = run.eval_source[0].image @ np.array([0.2989, 0.587, 0.114])
    assert np.abs(np.asarray(batch["image"][0]) - grey.reshape(-1)).max() <= 1


@pytest.mark.parametrize(
    ("make", "changes", "said"),
    [
        (listops, {"augment": {"hflip": 0.5}}, r"augment.hflip=0.5 has no effect on the tokens .*: set it to 0.0"),
        (listops, {"augment": {"mixup": 0.8}}, "augment.mixup=0.8 has no effect"),
        (listops, {"model": {"vocabulary": 20}}, r"'listops' has 16 tokens and model.vocabulary=20: use .*=16"),
        (listops, {"data": {"name": "lra_image"}}, "data.name='lra_image' needs --config.data.folder=PATH"),
        (listops, {"optimizer": {"schedule": "linear"}}, "schedule='linear' must be one of cosine, rsqrt"),
    ],
)
def test_what_does_not_fit_is_refused(make, changes, said):
    config = make()
    config.update(changes)
    with pytest.raises(ValueError, match=said) as error:
        setup.prepare(config)
    assert "\n" not in str(error.value)
