"""Evaluation counts every image once and is right about accuracy."""

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
import pytest

from flatten_jax.models import create_model
from flatten_jax.training.evaluate import evaluate, make_eval_step
from flatten_jax.training.sharding import make_mesh, put_batch
from flatten_jax.training.tasks import Classify


class FirstRow(nn.Module):
    """Logits are the red pixels of the first row, before normalisation took place: an order is all that counts."""

    @nn.compact
    def __call__(self, images):
        return images[:, 0, :, 0]


def result_of(logits, labels, mask=None, expected=None):
    """Evaluation of eight rows of logits (uint8, ten classes)."""
    mesh = make_mesh()
    images = np.zeros((8, 1, 10, 3), np.uint8)
    images[:, 0, :, 0] = logits
    mask = np.ones(8, bool) if mask is None else mask
    batch = put_batch({"image": images, "label": np.asarray(labels, np.int32), "mask": mask}, mesh)
    expected = int(mask.sum()) if expected is None else expected
    task = Classify(FirstRow())
    return evaluate(task, make_eval_step(task, mesh), {}, [batch], expected)


LOGITS = np.tile(np.arange(10, dtype=np.uint8) * 20, (8, 1))  # class 9 is first, 8 second, ...


def test_five_classes_have_no_top_5():
    result = {"eval/acc1": 50.0, "eval/acc5": 100.0, "eval/loss": 0.5, "eval/count": 1}
    said = {n: Classify(create_model("flatten_deit_t", num_classes=n)).words(result) for n in (5, 6)}
    assert said == {
        5: "top-1 50.00 %, loss 0.5000 on 1 image",
        6: "top-1 50.00 %, top-5 100.00 %, loss 0.5000 on 1 image",
    }


def test_accuracies_are_those_of_the_ranks():
    result = result_of(LOGITS, labels=[9, 9, 8, 7, 6, 5, 4, 0])
    assert (result["acc1"], result["acc5"], result["count"]) == (25.0, 75.0, 8)


def test_loss_is_the_cross_entropy():
    logits = (LOGITS[0] / 255 - 0.485) / 0.229
    expected = np.log(np.exp(logits).sum()) - logits[3]
    assert result_of(LOGITS, labels=[3] * 8)["loss"] == pytest.approx(expected, rel=1e-5)


def test_padding_is_left_out():
    mask = np.array([True] * 5 + [False] * 3)
    result = result_of(LOGITS, labels=[9, 9, 9, 9, 0, 9, 9, 9], mask=mask)
    assert (result["acc1"], result["count"]) == (80.0, 5)


def test_equal_logits_are_not_right():
    assert result_of(np.zeros((8, 10)), labels=[0] * 8)["acc5"] == 0


def test_nan_logits_are_not_right():
    class Broken(nn.Module):
        @nn.compact
        def __call__(self, images):
            return jnp.full((images.shape[0], 10), jnp.nan)

    mesh = make_mesh()
    batch = {"image": np.zeros((8, 1, 1, 3), np.uint8), "label": np.zeros(8, np.int32), "mask": np.ones(8, bool)}
    task = Classify(Broken())
    assert evaluate(task, make_eval_step(task, mesh), {}, [put_batch(batch, mesh)], 8)["acc1"] == 0


def test_another_count_than_the_sets_is_an_error():
    with pytest.raises(RuntimeError, match="saw 8 images, the set has 9"):
        result_of(LOGITS, labels=[0] * 8, expected=9)
