"""What is done to pictures and masks, on pictures whose result is known."""

import colorsys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flatten_jax.data.source import Example
from flatten_jax.segmentation.distort import Distortion, distort, resized, resized_mask
from flatten_jax.segmentation.masks import IGNORED
from flatten_jax.segmentation.transforms import EvalTransform, TrainTransform, is_mixed, scaled_size

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (40, 50, 3), np.uint8)
MASK = np.repeat(np.repeat(np.arange(20, dtype=np.uint8).reshape(4, 5), 10, 0), 10, 1)
EXAMPLE = Example(PIXELS, MASK, "known")
EQUAL = np.testing.assert_array_equal


@pytest.mark.parametrize("size", [(80, 75), (23, 31), (40, 50)])
def test_a_picture_is_resized_bilinear_and_any_part_of_it_alike(size):
    expected = jax.image.resize(jnp.asarray(PIXELS, jnp.float32), (*size, 3), "linear", antialias=False)
    whole = resized(PIXELS, size)
    assert np.abs(whole - np.asarray(expected)).max() < 0.51
    EQUAL(resized(PIXELS, size, (3, 5, 14, 21)), whole[3:17, 5:26])


def test_a_mask_has_only_its_own_ids_at_the_same_places():
    EQUAL(resized_mask(MASK, (80, 100)), MASK.repeat(2, 0).repeat(2, 1))
    noise = RNG.integers(0, 200, (40, 50)).astype(np.uint8)
    EQUAL(resized_mask(noise, (4, 5)), noise[5::10, 5::10])
    EQUAL(resized_mask(noise, (31, 77), (3, 5, 14, 21)), resized_mask(noise, (31, 77))[3:17, 5:26])


@pytest.mark.parametrize(
    ("size", "expected"),
    [((512, 683), (512, 683)), ((300, 400), (512, 683)), ((400, 2000), (410, 2048)), ((3, 2), (768, 512))],
)
def test_the_aspect_is_kept_within_both_sides(size, expected):
    assert scaled_size(size, (512, 2048)) == expected


def transform(**changes):
    return TrainTransform(
        **{
            "size": (20, 30),
            "resize": (40, 50),
            "ratio": (1.0, 1.0),
            "cat_max_ratio": 1.0,
            "hflip": 0.0,
            "photometric": False,
        }
        | changes,
    )


def rng(seed=0):
    return np.random.default_rng([7, seed])


def test_a_crop_is_of_the_same_place_in_both():
    image, label = transform().labelled(EXAMPLE, rng())
    places = np.argwhere(
        (np.lib.stride_tricks.sliding_window_view(PIXELS, (20, 30, 3))[:, :, 0] == image).all((2, 3, 4))
    )
    ((top, left),) = places
    EQUAL(label, MASK[top : top + 20, left : left + 30])
    tops = {transform().labelled(EXAMPLE, rng(seed))[1].tobytes() for seed in range(20)}
    assert len(tops) > 15


def test_the_flip_mirrors_both():
    image, label = transform(hflip=1.0).labelled(EXAMPLE, rng())
    plain, mask = transform().labelled(EXAMPLE, rng())
    EQUAL(image, plain[:, ::-1])
    EQUAL(label, mask[:, ::-1])


def test_beyond_the_picture_is_the_mean_and_no_class():
    image, label = transform(ratio=(0.3, 0.3), fill=(1, 2, 3)).labelled(EXAMPLE, rng())
    EQUAL(label[:12, :15], resized_mask(MASK, (12, 15)))
    EQUAL(image[:12, :15], resized(PIXELS, (12, 15)))
    assert (label[12:] == IGNORED).all() and (label[:, 15:] == IGNORED).all()
    assert (image[12:] == (1, 2, 3)).all() and (image[:, 15:] == (1, 2, 3)).all()


def test_the_scale_is_drawn():
    """Of a mask with columns of one pixel each, the crop's ids tell the factor."""
    columns = Example(np.zeros((40, 200, 3), np.uint8), np.tile(np.arange(200, dtype=np.uint8), (40, 1)), "")
    of = transform(resize=(40, 200), ratio=(0.5, 2.0), size=(20, 100))
    factors = [
        100 / (int(label[0].max()) - int(label[0].min()) + 1)
        for label in (of.labelled(columns, rng(s))[1] for s in range(40))
    ]
    assert 0.4 < min(factors) < 0.7 and 1.6 < max(factors) < 2.1


def test_a_class_that_fills_the_crop_is_avoided():
    two = np.array([[0] * 8 + [1] * 2], np.uint8)
    assert not is_mixed(two, 0.75) and is_mixed(two, 0.9) and not is_mixed(two, 0.8)
    assert not is_mixed(np.array([[0, 0, IGNORED]]), 0.9) and not is_mixed(np.array([[IGNORED]]), 0.9)
    corner = np.zeros((100, 100), np.uint8)
    corner[:60, :60] = 1
    example = Example(np.zeros((100, 100, 3), np.uint8), corner, "")
    share = [
        np.mean(
            [
                is_mixed(transform(resize=(100, 100), cat_max_ratio=most).labelled(example, rng(s))[1], 0.75)
                for s in range(40)
            ]
        )
        for most in (0.75, 1.0)
    ]
    assert share[0] > 0.8 and share[1] < 0.5


COLOURS = np.array([[[255, 0, 0], [10, 200, 30], [100, 100, 100], [20, 40, 240], [250, 240, 5], [0, 0, 0]]], np.uint8)


def by_colorsys(change):
    return np.array(
        [[[255 * c for c in colorsys.hsv_to_rgb(*change(*colorsys.rgb_to_hsv(*p / 255)))] for p in COLOURS[0]]]
    )


@pytest.mark.parametrize(
    ("distortion", "change"),
    [
        (Distortion(hue=60), lambda h, s, v: ((h + 1 / 3) % 1, s, v)),
        (Distortion(hue=-18), lambda h, s, v: ((h - 0.1) % 1, s, v)),
        (Distortion(saturation=0.5), lambda h, s, v: (h, 0.5 * s, v)),
        (Distortion(saturation=1.5), lambda h, s, v: (h, min(1, 1.5 * s), v)),
    ],
)
def test_hue_and_saturation_are_those_of_hsv(distortion, change):
    """To what 8 bits of each of hue, saturation and value leave of a colour: a hue is a multiple of two degrees."""
    assert np.abs(distort(COLOURS, distortion) - by_colorsys(change)).max() <= 5


def test_brightness_and_contrast_are_rounded_down_and_clipped():
    EQUAL(distort(COLOURS, Distortion(brightness=20.5))[0, 0], [255, 20, 20])
    EQUAL(distort(COLOURS, Distortion(brightness=-20.5))[0, 1], [0, 179, 9])
    for place in ("contrast_first", "contrast_last"):
        EQUAL(distort(COLOURS, Distortion(**{place: 1.33}))[0, 1], [13, 255, 39])
    EQUAL(distort(COLOURS, Distortion()), COLOURS)
    EQUAL(distort(COLOURS, Distortion(brightness=100, contrast_first=0.5, contrast_last=1.5))[0, 3], [90, 105, 190])


def test_each_distortion_is_drawn_half_of_the_time_and_within_its_range():
    drawn = [Distortion.drawn(rng(seed)) for seed in range(400)]
    for name, off, low, high in (("brightness", 0, -32, 32), ("saturation", 1, 0.5, 1.5), ("hue", 0, -18, 17)):
        values = np.array([getattr(d, name) for d in drawn])
        assert 0.4 < np.mean(values != off) < 0.6
        assert low <= values.min() < low + 0.1 * (high - low) and high - 0.1 * (high - low) < values.max() <= high
    first, last = (np.array([getattr(d, f"contrast_{place}") != 1 for d in drawn]) for place in ("first", "last"))
    assert not (first & last).any() and 0.15 < first.mean() < 0.35 and 0.15 < last.mean() < 0.35


def test_the_same_numbers_give_the_same_example():
    of = transform(ratio=(0.5, 2.0), cat_max_ratio=0.75, hflip=0.5, photometric=True)
    first, again, other = (of.labelled(EXAMPLE, rng(seed)) for seed in (1, 1, 2))
    EQUAL(first[0], again[0])
    EQUAL(first[1], again[1])
    assert (first[0] != other[0]).any()


def test_windows_cover_the_picture_and_the_last_are_inside():
    of = EvalTransform((512, 2048), (512, 512), stride=341)
    assert of.places((512, 683)) == [(0, 0), (0, 171)]
    assert [left for _, left in of.places((512, 2048))] == [0, 341, 682, 1023, 1364, 1536]
    assert of.places((600, 600)) == [(0, 0), (0, 88), (88, 0), (88, 88)]
    windows = EvalTransform((40, 50), (16, 16), stride=12).windows(EXAMPLE)
    assert windows.shape == (12, 16, 16, 3)
    EQUAL(windows[0], PIXELS[:16, :16])
    EQUAL(windows[-1], PIXELS[24:, 34:])


def test_whole_pictures_have_sides_that_suit_the_model():
    assert EvalTransform((512, 2048)).resized_size((480, 640)) == (512, 672)
    assert EvalTransform((512, 2048)).resized_size((480, 650)) == (512, 704)
    assert EvalTransform((512, 2048), multiple=1).resized_size((480, 640)) == (512, 683)


def test_a_window_beyond_a_small_picture_is_filled():
    (window,) = EvalTransform((10, 20), (16, 24), stride=8, fill=(1, 2, 3)).windows(EXAMPLE)
    EQUAL(window[:10, :13], resized(PIXELS, (10, 13)))
    assert (window[10:] == (1, 2, 3)).all() and (window[:, 13:] == (1, 2, 3)).all()
