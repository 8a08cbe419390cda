"""RandAugment: each operation on a picture whose result can be worked out by hand, and all against timm's output."""

import random
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from flatten_jax.bench.input_pipeline import SLOW
from flatten_jax.data.rand_augment import FILL, INCREASING, PLAIN, RandAugment, parse

RAMP = np.arange(256, dtype=np.uint8).reshape(8, 32)
# made once with the functions of timm 0.4.12's auto_augment.py, bicubic, fill (124, 116, 104)
TIMM = np.load(Path(__file__).parent / "rand_augment_timm.npz")


def gray(values) -> Image.Image:
    return Image.fromarray(np.stack([np.asarray(values, np.uint8)] * 3, axis=-1))


def global_state():
    _, keys, position, *_ = np.random.get_state()
    return random.getstate(), keys.tolist(), position


def channel(image: Image.Image) -> np.ndarray:
    return np.asarray(image)[..., 0].astype(int)


@pytest.mark.parametrize("index", range(len(TIMM["names"])), ids=TIMM["names"])
def test_same_pixels_as_timm(index):
    table, name, magnitude, sign = str(TIMM["names"][index]).split("/")
    operation = {"increasing": INCREASING, "plain": PLAIN}[table][name]
    result = operation(Image.fromarray(TIMM["image"]), float(magnitude), negate=sign == "-")
    np.testing.assert_array_equal(np.asarray(result), TIMM["results"][index])


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (19, 40), (64, 51)], ids=str)
@pytest.mark.parametrize("name", SLOW)
def test_what_is_computed_without_pillow_is_equal_to_pillow(name, size):
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(256, size=(*size, 3), dtype=np.uint8))
    for share in (0, 1e-9, 0.25, -0.25, 0.375, *rng.uniform(-0.45, 0.45, 20), 1 - 2**-52):
        value = 60 * share if name == "Rotate" else share
        found, expected = INCREASING[name].apply(image, value), SLOW[name](image, value)
        np.testing.assert_array_equal(np.asarray(found), np.asarray(expected), f"{value}")


@pytest.mark.parametrize(
    ("table", "name", "values"),  # at magnitude 0, 5, 9, 9.8 and 10
    [
        (INCREASING, "Rotate", (0, 15, 27, 29.4, 30)),
        (INCREASING, "Posterize", (4, 2, 1, 1, 0)),
        (INCREASING, "Solarize", (256, 128, 26, 6, 0)),
        (INCREASING, "SolarizeAdd", (0, 55, 99, 107, 110)),
        (INCREASING, "Color", (0, 0.45, 0.81, 0.882, 0.9)),
        (INCREASING, "Contrast", (0, 0.45, 0.81, 0.882, 0.9)),
        (INCREASING, "Brightness", (0, 0.45, 0.81, 0.882, 0.9)),
        (INCREASING, "Sharpness", (0, 0.45, 0.81, 0.882, 0.9)),
        (INCREASING, "ShearX", (0, 0.15, 0.27, 0.294, 0.3)),
        (INCREASING, "ShearY", (0, 0.15, 0.27, 0.294, 0.3)),
        (INCREASING, "TranslateXRel", (0, 0.225, 0.405, 0.441, 0.45)),
        (INCREASING, "TranslateYRel", (0, 0.225, 0.405, 0.441, 0.45)),
        (PLAIN, "Posterize", (0, 2, 3, 3, 4)),
        (PLAIN, "Solarize", (0, 128, 230, 250, 256)),
        (PLAIN, "Color", (-0.9, 0, 0.72, 0.864, 0.9)),
        (PLAIN, "Contrast", (-0.9, 0, 0.72, 0.864, 0.9)),
        (PLAIN, "Brightness", (-0.9, 0, 0.72, 0.864, 0.9)),
        (PLAIN, "Sharpness", (-0.9, 0, 0.72, 0.864, 0.9)),
    ],
)
def test_magnitude_gives_the_published_value(table, name, values):
    found = [table[name].value(magnitude / 10) for magnitude in (0, 5, 9, 9.8, 10)]
    assert found == pytest.approx(values)


def test_the_value_is_negated_only_where_a_direction_exists():
    def negated(table):
        values = {name: operation._replace(apply=lambda image, value: value) for name, operation in table.items()}
        return {name for name, operation in values.items() if operation(None, 9, negate=True) < 0}

    geometric = {"Rotate", "ShearX", "ShearY", "TranslateXRel", "TranslateYRel"}
    assert negated(INCREASING) == geometric | {"Color", "Contrast", "Brightness", "Sharpness"}
    assert negated(PLAIN) == geometric


def test_autocontrast_stretches_to_the_full_range():
    result = INCREASING["AutoContrast"](gray([[100, 110, 130, 150]]), 9)
    np.testing.assert_array_equal(channel(result), [[0, 51, 153, 255]])


def test_equalize_spreads_equal_counts_evenly():
    values = np.repeat([10, 20, 30, 40], 255).reshape(4, 255)
    result = INCREASING["Equalize"](gray(values), 9)
    np.testing.assert_array_equal(channel(result)[:, 0], [0, 85, 170, 255])


def test_invert():
    np.testing.assert_array_equal(channel(INCREASING["Invert"](gray(RAMP), 9)), 255 - RAMP.astype(int))


@pytest.mark.parametrize(("magnitude", "mask"), [(0, 0xF0), (5, 0xC0), (9, 0x80), (10, 0)])
def test_posterize_keeps_the_top_bits(magnitude, mask):
    np.testing.assert_array_equal(channel(INCREASING["Posterize"](gray(RAMP), magnitude)), RAMP & mask)


def test_solarize_inverts_from_the_threshold_on():
    expected = np.where(RAMP < 26, RAMP, 255 - RAMP)
    np.testing.assert_array_equal(channel(INCREASING["Solarize"](gray(RAMP), 9)), expected)


def test_solarize_add_lifts_the_dark_half():
    expected = np.where(RAMP < 128, np.minimum(RAMP.astype(int) + 99, 255), RAMP)
    np.testing.assert_array_equal(channel(INCREASING["SolarizeAdd"](gray(RAMP), 9)), expected)


@pytest.mark.parametrize(("negate", "factor"), [(False, 1.81), (True, 0.19)])
def test_enhancements_scale_the_distance_from_their_neutral_picture(negate, factor):
    def enhanced(name, image):
        return np.asarray(INCREASING[name](Image.fromarray(np.asarray(image, np.uint8)), 9, negate)).astype(float)

    def blend(neutral, image):
        return np.clip(neutral + factor * (np.asarray(image, float) - neutral), 0, 255)

    ramp = np.stack([RAMP] * 3, axis=-1)
    np.testing.assert_allclose(enhanced("Brightness", ramp), blend(0, ramp), atol=1)  # neutral: black
    two = np.full((4, 4, 3), 120)
    two[:2] = 180
    np.testing.assert_allclose(enhanced("Contrast", two), blend(150, two), atol=1)  # neutral: the mean gray
    red = np.full((4, 4, 3), (100, 0, 0))
    np.testing.assert_allclose(enhanced("Color", red), blend(29.9, red), atol=1)  # neutral: luma, 0.299 of the red
    dot, smooth = np.zeros((5, 5, 3)), np.zeros((5, 5, 3))
    dot[2, 2] = 130
    smooth[1:4, 1:4] = 10  # PIL's SMOOTH: a thirteenth each, the centre five of them
    smooth[2, 2] = 50
    np.testing.assert_allclose(enhanced("Sharpness", dot), blend(smooth, dot), atol=1)


@pytest.mark.parametrize(("negate", "dy"), [(False, -5), (True, 5)])
def test_rotate_turns_about_the_centre(negate, dy):
    picture = np.full((33, 33, 3), FILL, np.uint8)
    picture[15:18, 25:28] += 90  # a spot 10 pixels to the right of the centre
    result = np.asarray(INCREASING["Rotate"](Image.fromarray(picture), 10, negate)).astype(float) - FILL
    weight = result.sum(axis=-1)
    y, x = np.mgrid[:33, :33]
    centroid = (weight * y).sum() / weight.sum() - 16, (weight * x).sum() / weight.sum() - 16
    np.testing.assert_allclose(centroid, (dy, 10 * np.cos(np.pi / 6)), atol=0.05)


def test_rotate_by_nothing_changes_nothing_and_corners_are_filled():
    black = np.zeros((12, 12, 3), np.uint8)
    turned = np.asarray(INCREASING["Rotate"](Image.fromarray(black), 10))
    assert tuple(turned[0, 0]) == FILL and tuple(turned[6, 6]) == (0, 0, 0)
    np.testing.assert_array_equal(np.asarray(INCREASING["Rotate"](gray(RAMP), 0)), np.asarray(gray(RAMP)))


@pytest.mark.parametrize(("negate", "slope"), [(False, -0.3), (True, 0.3)])
@pytest.mark.parametrize("name", ["ShearX", "ShearY"])
def test_shear_tilts_a_line(name, negate, slope):
    picture = np.full((20, 40, 3), FILL, np.uint8)
    picture[:, 20] += 90
    if name == "ShearY":
        picture = picture.swapaxes(0, 1)
    result = np.asarray(INCREASING[name](Image.fromarray(picture), 10, negate)).astype(float) - FILL
    if name == "ShearY":
        result = result.swapaxes(0, 1)
    weight = result.sum(axis=-1)
    line = (weight * np.arange(40)).sum(axis=1) / weight.sum(axis=1)
    np.testing.assert_allclose(line, 20 + slope * (np.arange(20) + 0.5), atol=0.15)  # the edge of the picture stays put


@pytest.mark.parametrize("name", ["TranslateXRel", "TranslateYRel"])
def test_translate_shifts_by_a_share_of_its_own_side_and_fills(name):
    picture = np.random.default_rng(0).integers(256, size=(40, 20, 3), dtype=np.uint8)
    shift, axis = (9, 1) if name == "TranslateXRel" else (18, 0)  # 0.45 of the side
    forward = np.moveaxis(np.asarray(INCREASING[name](Image.fromarray(picture), 10)), axis, 0)
    back = np.moveaxis(np.asarray(INCREASING[name](Image.fromarray(picture), 10, negate=True)), axis, 0)
    picture = np.moveaxis(picture, axis, 0)
    np.testing.assert_array_equal(forward[:-shift], picture[shift:])
    np.testing.assert_array_equal(back[shift:], picture[:-shift])
    assert (forward[-shift:] == FILL).all() and (back[:shift] == FILL).all()


def test_operations_are_drawn_uniformly_with_replacement_and_applied_half_the_time(monkeypatch):
    calls = []
    for name, operation in INCREASING.items():
        record = operation._replace(apply=lambda image, value, name=name: calls.append((name, value)) or image)
        monkeypatch.setitem(INCREASING, name, record)
    rng = np.random.default_rng(0)
    pairs = []
    for _ in range(6000):
        before = len(calls)
        parse("rand-m9-mstd0.5-inc1")(None, rng)
        pairs.append([name for name, _ in calls[before:]])
    applied = Counter(len(pair) for pair in pairs)
    np.testing.assert_allclose([applied[n] / 6000 for n in range(3)], [0.25, 0.5, 0.25], atol=0.02)
    shares = Counter(name for name, _ in calls)
    np.testing.assert_allclose([shares[name] / len(calls) for name in INCREASING], 1 / 15, atol=0.012)
    twice = np.mean([pair[0] == pair[1] for pair in pairs if len(pair) == 2])
    assert twice == pytest.approx(1 / 15, abs=0.02)
    assert np.mean([value > 0 for name, value in calls if name == "Rotate"]) == pytest.approx(0.5, abs=0.08)


def test_magnitude_noise_is_normal_and_clipped():
    rng = np.random.default_rng(0)
    draws = np.array([parse("rand-m9-mstd0.5-inc1").draw_magnitude(rng) for _ in range(5000)])
    assert draws.max() == 10 and (draws == 10).mean() == pytest.approx(0.0228, abs=0.01)  # two deviations above 9
    assert np.median(draws) == pytest.approx(9, abs=0.05)
    assert np.quantile(draws, 0.1587) == pytest.approx(8.5, abs=0.05)
    assert min(parse("rand-m0-mstd1").draw_magnitude(rng) for _ in range(20)) == 0
    assert parse("rand-m7").draw_magnitude(rng) == 7


def test_only_the_given_generator_is_used():
    image, augment = Image.fromarray(TIMM["image"]), parse("rand-m9-n6-p1-mstd0.5-inc1")
    before = global_state()
    first = [np.asarray(augment(image, np.random.default_rng(seed))) for seed in range(8)]
    assert global_state() == before
    again = [np.asarray(augment(image, np.random.default_rng(seed))) for seed in range(8)]
    np.testing.assert_array_equal(first, again)
    assert len({result.tobytes() for result in first}) > 4


def test_parse():
    assert parse("rand-m9-mstd0.5-inc1") == RandAugment(9.0, layers=2, probability=0.5, std=0.5, increasing=True)
    assert parse("rand") == RandAugment(10.0, layers=2, probability=0.5, std=0.0, increasing=False)
    assert parse("rand-p0.25-inc0-n3-m4.5") == RandAugment(4.5, layers=3, probability=0.25, std=0.0, increasing=False)


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("augmix-m3", "augmix-m3"),
        ("rand-m9-w0", "w0"),
        ("rand-m9-mmax20", "mmax20"),
        ("rand-m9-", ""),
        ("rand-m9-minc1", "minc1"),
        ("rand-m11", "m11"),
        ("rand-m9-n2.5", "n2.5"),
        ("rand-m9-n0", "n0"),
        ("rand-m9-p1.5", "p1.5"),
        ("rand-m9-mstd101", "mstd101"),
        ("rand-m9-inc2", "inc2"),
        ("rand-m9-m8", "m8"),
    ],
)
def test_parse_names_the_part_it_refuses(text, part):
    with pytest.raises(ValueError) as error:
        parse(text)
    assert repr(part) in str(error.value)
