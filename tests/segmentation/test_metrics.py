"""The confusion matrix and what is made of it, and logits of windows laid over each other."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flatten_jax.segmentation.masks import IGNORED, id_table
from flatten_jax.segmentation.metrics import confusion_of, in_limbs, of_limbs, scores
from flatten_jax.segmentation.transforms import EvalTransform
from flatten_jax.segmentation.windows import confusion_of_windows

I = np.arange(60).reshape(6, 10)  # noqa: E741
PREDICTED, LABEL = (I * I // 3) % 5, (I * I // 4) % 6


def found(labels):
    confusion = np.asarray(confusion_of(jnp.asarray(labels), jnp.asarray(PREDICTED), 5))
    right = np.diag(confusion)
    return scores(confusion), list(right), list(confusion.sum(1) + confusion.sum(0) - right), list(confusion.sum(1))


def test_the_case_with_ignored_pixels():
    """mmsegmentation's numbers; ignored pixels count in no prediction either."""
    result, intersection, union, area = found(np.where(LABEL == 5, IGNORED, LABEL))
    assert (intersection, union, area) == ([9, 4, 4, 2, 0], [36, 22, 14, 19, 10], [25, 10, 10, 5, 10])
    assert result.miou == pytest.approx(0.16455914, abs=1e-7)
    assert result.aacc == pytest.approx(0.31666666, abs=1e-7)
    assert result.macc == pytest.approx(0.31199998, abs=1e-7)


def test_the_case_with_zero_reduced():
    """A class that is nowhere has no IoU, and the mean is over the others."""
    result, intersection, union, _ = found(id_table(5, reduce_zero_label=True)[LABEL])
    assert (intersection, union) == ([4, 0, 2, 2, 0], [17, 18, 9, 18, 0])
    assert np.isnan(result.iou[4])
    assert result.miou == pytest.approx(0.14215686, abs=1e-7)
    assert result.aacc == pytest.approx(0.22857143, abs=1e-7)


def test_zero_is_reduced_in_mmsegmentations_order():
    table = id_table(150, reduce_zero_label=True)
    assert (table[0], table[1], table[150], table[255]) == (IGNORED, 0, 149, IGNORED)
    assert list(id_table(2, first=1, ignored=(3,))[:4]) == [254, 0, 1, IGNORED]


def test_sums_of_limbs_are_exact_where_32_bits_are_not():
    counts = jnp.asarray([[2**31 - 1, 5], [65_536, 0]], jnp.int32)
    sums = sum(np.asarray(in_limbs(counts), np.uint64) for _ in range(100)).astype(np.uint32)
    np.testing.assert_array_equal(of_limbs(sums), 100 * np.asarray(counts, np.int64))


def test_nothing_labelled_has_no_score():
    assert np.isnan(scores(np.zeros((3, 3)))[1:]).all()


def resize(x, size):
    return np.asarray(jax.image.resize(jnp.asarray(x), (*size, x.shape[-1]), "linear", antialias=False))


def direct(logits, places, window, resized, original):
    """As mmsegmentation does it: each window at its size, added up, divided by the counts, made the original size."""
    total, count = np.zeros((*resized, logits.shape[-1]), np.float32), np.zeros((*resized, 1))
    for one, (top, left) in zip(logits, places, strict=False):
        total[top : top + window[0], left : left + window[1]] += resize(one, window)
        count[top : top + window[0], left : left + window[1]] += 1
    assert count.min() >= 1
    return resize(total / count, original).argmax(-1)


@pytest.mark.parametrize("slide", [True, False])
def test_windows_are_laid_over_each_other_as_if_each_step_was_made(slide):
    rng, window, classes = np.random.default_rng(0), (16, 24), 4
    transform = EvalTransform((16, 200), window if slide else None, stride=10)
    pictures = [((50, 61), (30, 37)), ((21, 90), (16, 69)), ((20, 24), (16, 24))] if slide else [((33, 50), window)] * 3
    places = [transform.places(resized) for _, resized in pictures]
    most = max(map(len, places))
    assert [len(p) for p in places] == ([9, 6, 1] if slide else [1, 1, 1])
    logits = rng.normal(size=(3, most, 4, 6, classes)).astype(np.float32)
    batch = {
        "label": np.full((3, 64, 90), IGNORED, np.uint8),
        "places": np.zeros((3, most, 2), np.int32),
        "windows": np.array([len(p) for p in places], np.int32),
        "resized": np.array([r for _, r in pictures], np.int32),
        "original": np.array([o for o, _ in pictures], np.int32),
    }
    expected = np.zeros((classes, classes), int)
    for i, (original, resized) in enumerate(pictures):
        batch["places"][i, : len(places[i])] = places[i]
        label = rng.integers(0, classes, original)
        label[0, :5] = IGNORED
        batch["label"][i, : original[0], : original[1]] = label
        ids = direct(logits[i], places[i], window, resized, original)
        np.add.at(expected, (label[label < 255], ids[label < 255]), 1)
    ours = jax.jit(lambda *given: confusion_of_windows(*given, window))(logits, batch)
    assert np.abs(np.asarray(ours) - expected).sum() <= 2  # where two logits are as good as equal
    assert ours.sum() == expected.sum()
