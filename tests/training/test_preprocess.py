"""What the device does to a batch: normalise, erase, mix, smooth."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flatten_jax.models.images import normalize
from flatten_jax.training.preprocess import Mixing, mix, random_erase, soft_targets


def test_normalisation_is_imagenets():
    pixels = np.array([[0, 0, 0], [255, 255, 255], [124, 116, 104]], np.uint8)
    expected = (pixels / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    np.testing.assert_allclose(normalize(jnp.asarray(pixels)), expected, atol=1e-5)


def test_normalisation_by_other_numbers():
    pixels = np.array([[0, 0, 0], [255, 255, 255]], np.uint8)
    np.testing.assert_allclose(normalize(jnp.asarray(pixels), (0.5,) * 3, (0.5, 0.25, 0.5)), [[-1, -2, -1], [1, 2, 1]])


def test_soft_targets_share_the_smoothing_among_all_classes():
    np.testing.assert_allclose(soft_targets(jnp.array([2]), 4, 0.1), [[0.025, 0.025, 0.925, 0.025]], atol=1e-6)


@pytest.fixture(scope="module")
def erased():
    return np.asarray(random_erase(jax.random.key(0), jnp.full((2000, 16, 24, 1), 7.0), prob=0.25))[..., 0] != 7.0


def test_erasing_hits_its_share_of_the_images(erased):
    assert erased.any((1, 2)).mean() == pytest.approx(0.25, abs=0.03)


def test_what_is_erased_is_one_box_of_the_published_size(erased):
    for mask in erased[erased.any((1, 2))]:
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        assert mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all()
    areas = erased.mean((1, 2))[erased.any((1, 2))]
    assert areas.min() > 0.005  # 2 %, less what rounding to whole pixels takes from the smallest boxes
    assert areas.max() < 0.40  # 1/3, likewise
    assert areas.mean() == pytest.approx((0.02 + 1 / 3) / 2, rel=0.1)


def test_erased_places_cover_the_picture_evenly(erased):
    centres = [np.argwhere(mask).mean(0) for mask in erased[erased.any((1, 2))]]
    np.testing.assert_allclose(np.mean(centres, axis=0), [7.5, 11.5], atol=0.6)


def test_erased_pixels_are_normal_noise():
    pixels = np.asarray(random_erase(jax.random.key(1), jnp.full((200, 16, 16, 3), 7.0), prob=1.0))
    noise = pixels[pixels != 7.0]
    assert noise.mean() == pytest.approx(0, abs=0.02)
    assert noise.std() == pytest.approx(1, abs=0.02)


def mixed(key, mixing, size=(12, 16)):
    """A black and a white picture of classes 0 and 1, mixed: the share of white shows in pixels and in targets."""
    images = jnp.stack([jnp.zeros((*size, 1)), jnp.ones((*size, 1))])
    pictures, targets = mix(jax.random.key(key), images, jnp.eye(2), mixing)
    return np.asarray(pictures[..., 0]), np.asarray(targets)


def test_mixup_blends_all_pixels_and_targets_alike():
    for key in range(5):
        pictures, targets = mixed(key, Mixing(mixup=0.8, cutmix=0.0))
        share = targets[0, 0]
        np.testing.assert_allclose(pictures[0], 1 - share, atol=1e-6)
        np.testing.assert_allclose(pictures[1], share, atol=1e-6)
        np.testing.assert_allclose(targets, [[share, 1 - share], [1 - share, share]], atol=1e-6)


def test_mixup_shares_follow_their_beta_distribution():
    shares = [mixed(key, Mixing(mixup=0.8, cutmix=0.0), (1, 1))[1][0, 0] for key in range(300)]
    assert np.mean(shares) == pytest.approx(0.5, abs=0.05)
    assert np.var(shares) == pytest.approx(1 / (4 * (2 * 0.8 + 1)), rel=0.15)


def test_cutmix_pastes_one_box_and_counts_its_pixels():
    for key in range(20):
        pictures, targets = mixed(key, Mixing(mixup=0.0, cutmix=1.0))
        pasted = pictures[0] == 1
        assert set(np.unique(pictures[0])) <= {0, 1}
        assert targets[0, 1] == pytest.approx(pasted.mean(), abs=1e-6)
        np.testing.assert_array_equal(pictures[1], ~pasted)
        if pasted.any():
            rows, columns = np.flatnonzero(pasted.any(1)), np.flatnonzero(pasted.any(0))
            assert pasted[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all()


def test_half_of_the_batches_are_cut_and_half_are_blended():
    blended = [np.isin(mixed(key, Mixing())[0], [0, 1]).all() for key in range(200)]
    assert np.mean(blended) == pytest.approx(0.5, abs=0.1)


def test_probability_zero_leaves_the_batch_alone():
    pictures, targets = mixed(0, Mixing(prob=0.0))
    np.testing.assert_array_equal(pictures[0], 0)
    np.testing.assert_array_equal(targets, np.eye(2))
