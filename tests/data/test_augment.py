"""Decoding, the evaluation crop against the release's pixels, and the random crop of training."""

import io
import pickle
import random
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest
from PIL import ExifTags, Image, ImageFile

from flatten_jax.data import augment, jpeg
from flatten_jax.data.augment import (
    CorruptImageError,
    EvalTransform,
    TrainTransform,
    decode,
    eval_transform,
    random_crop_box,
)

# JPEG bytes and the uint8 picture that the release's evaluation transform makes of them
GOLDENS = [Path(__file__).parent / f"eval_crop_{name}.npz" for name in ("n02123394", "n02815834")]


def noise(height, width) -> np.ndarray:
    return np.random.default_rng(0).integers(256, size=(height, width, 3), dtype=np.uint8)


def global_state():
    _, keys, position, *_ = np.random.get_state()
    return random.getstate(), keys.tolist(), position


def encoded(image: Image.Image, format: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


@pytest.mark.parametrize(
    ("mode", "color", "format", "rgb"),
    [
        ("CMYK", (51, 102, 0, 51), "JPEG", (163, 122, 204)),  # (255 - ink) * (255 - black) / 255
        ("L", 90, "JPEG", (90, 90, 90)),
        ("RGB", (10, 200, 60), "PNG", (10, 200, 60)),
        ("RGBA", (10, 200, 60, 0), "PNG", (10, 200, 60)),
        ("LA", (77, 128), "PNG", (77, 77, 77)),
        ("1", 1, "PNG", (255, 255, 255)),
        ("I;16", 0x5AFF, "PNG", (0x5A, 0x5A, 0x5A)),
        ("RGB", (10, 200, 60), "BMP", (10, 200, 60)),
    ],
)
def test_decode_gives_rgb_whatever_the_file_holds(mode, color, format, rgb):
    image = decode(encoded(Image.new(mode, (24, 16), color), format), "n02105855_2933.JPEG")
    assert (image.mode, image.size) == ("RGB", (24, 16))
    np.testing.assert_allclose(np.asarray(image).astype(int), np.broadcast_to(rgb, (16, 24, 3)), atol=2)


def test_decode_reads_palettes():
    image = Image.fromarray(np.repeat(np.array([[[255, 0, 0], [0, 0, 255]]], np.uint8), 8, axis=0))
    data = encoded(image.convert("P", palette=Image.Palette.ADAPTIVE), "PNG", transparency=0)
    np.testing.assert_array_equal(np.asarray(decode(data, "palette")), np.asarray(image))


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data", "ignore:Truncated File Read")
def test_decode_ignores_exif():
    image = Image.fromarray(noise(16, 24))
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    plain = decode(encoded(image, "JPEG"), "plain")
    for data in (exif.tobytes(), exif.tobytes()[:15], b"Exif\0\0MM\0*" + bytes(range(40))):
        np.testing.assert_array_equal(np.asarray(decode(encoded(image, "JPEG", exif=data), "exif")), np.asarray(plain))


def test_decode_takes_arrays_as_they_are():
    array = noise(5, 7)
    np.testing.assert_array_equal(np.asarray(decode(array, "a")), array)
    for wrong in (array[..., 0], array.astype(np.float32), array.transpose(2, 0, 1)):
        with pytest.raises(ValueError, match=r"'digits/7'.*uint8 \(height, width, 3\)"):
            decode(wrong, "digits/7")


@pytest.mark.parametrize("keep", [0.0, 0.01, 0.3, 0.7, 0.98])
@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
def test_a_cut_file_fails_by_name(format, keep):
    data = encoded(Image.fromarray(noise(32, 32)), format)
    decode(data, "whole")
    with pytest.raises(CorruptImageError, match=r"'train/n01440764_10\.JPEG'"):
        decode(data[: int(keep * len(data))], "train/n01440764_10.JPEG")


@pytest.mark.parametrize("options", [{}, {"subsampling": 0}, {"progressive": True}, {"mode": "L"}], ids=str)
def test_whole_jpegs_get_the_pixels_of_pillow_without_it(options, monkeypatch):
    image = Image.fromarray(noise(37, 51)).convert(options.pop("mode", "RGB"))
    data = encoded(image, "JPEG", **options)
    expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    monkeypatch.setattr(Image, "open", None)
    np.testing.assert_array_equal(np.asarray(decode(data, "x")), expected)


@pytest.mark.parametrize("reduction", [1, 2, 8])
@pytest.mark.parametrize(
    "options",
    [{}, {"subsampling": 0}, {"subsampling": 1}, {"restart_marker_rows": 1}, {"comment": b"\xff\xc0\xff\xda"}],
    ids=str,
)
def test_decoding_the_upper_rows_gives_the_pixels_of_the_whole(options, reduction):
    data = encoded(Image.fromarray(noise(100, 70)), "JPEG", **options)
    whole = jpeg.decode(data, reduction)
    for rows in (1, 16, 41, 63, 64, 65, 95, 100):
        upper = jpeg.decode(data, reduction, rows)
        least = -(-rows // reduction)
        assert least <= len(upper) <= least + 8 and upper.shape[1:] == whole.shape[1:]
        np.testing.assert_array_equal(upper[:least], whole[:least])


@pytest.mark.parametrize("options", [{"progressive": True}, {"trailing": b"\0"}], ids=str)
def test_what_cannot_end_early_is_decoded_whole(options):
    trailing = options.pop("trailing", b"")
    data = encoded(Image.fromarray(noise(100, 70)), "JPEG", **options) + trailing
    assert jpeg.decode(data, rows=10).shape == (100, 70, 3)


def test_damage_inside_a_jpeg_is_left_to_pillow():
    data = bytearray(encoded(Image.fromarray(noise(64, 64)), "JPEG"))
    data[-1500:-1400] = bytes(100)
    assert jpeg.decode(bytes(data)) is None
    expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    np.testing.assert_array_equal(np.asarray(decode(bytes(data), "x")), expected)
    transform, rng = TrainTransform((64, 64), (1, 1), (1, 1), hflip=0, rand_augment=""), np.random.default_rng(0)
    np.testing.assert_array_equal(transform.from_file(bytes(data), "x", rng), expected)


def test_a_header_that_promises_too_many_pixels_is_corrupt():
    data = encoded(Image.new("RGB", (300, 200)), "JPEG")
    assert jpeg.size(data) == (200, 300)
    data = data.replace(b"\x00\xc8\x01\x2c", b"\xff\x00\xff\x00")
    assert jpeg.size(data) is None  # before simplejpeg makes an array for them
    with pytest.raises(CorruptImageError, match="DecompressionBomb"):
        decode(data, "x")


def test_garbage_fails_by_name():
    with pytest.raises(CorruptImageError, match=r"'x\.JPEG'"):
        decode(b"\xff\xd8\xff" + bytes(range(256)) * 8, "x.JPEG")


def test_partial_decoding_by_a_global_flag_is_refused(monkeypatch):
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    with pytest.raises(ValueError, match="LOAD_TRUNCATED_IMAGES"):
        decode(encoded(Image.fromarray(noise(32, 32)), "JPEG"), "x")


def test_corrupt_image_error_crosses_processes():
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        error = pool.submit(decode, b"nothing", "n01.JPEG").exception()
    assert type(error) is CorruptImageError and error.name == "n01.JPEG" and error.reason in str(error)


@pytest.mark.parametrize("path", GOLDENS, ids=lambda path: path.stem)
def test_eval_transform_gives_the_pixels_of_the_release(path):
    golden = np.load(path)
    image = decode(golden["jpeg"].tobytes(), path.name)
    np.testing.assert_array_equal(EvalTransform((256, 256), (224, 224))(image), golden["crop"])


@pytest.mark.parametrize(
    ("resize", "crop", "rows", "columns"),
    [
        ((10, 20), (4, 7), slice(3, 7), slice(6, 13)),  # 6.5 -> 6: torchvision rounds a half to the even number
        ((11, 20), (4, 20), slice(4, 8), slice(0, 20)),  # 3.5 -> 4
        ((10, 20), (10, 20), slice(0, 10), slice(0, 20)),
    ],
)
def test_eval_crop_is_central(resize, crop, rows, columns):
    picture = noise(*resize)
    np.testing.assert_array_equal(EvalTransform(resize, crop)(Image.fromarray(picture)), picture[rows, columns])


def test_eval_squashes_both_sides():
    picture = np.zeros((30, 12, 3), np.uint8)
    picture[:15] = 255  # the upper half
    result = EvalTransform((8, 40), (8, 40))(Image.fromarray(picture))
    assert result.shape == (8, 40, 3) and result.dtype == np.uint8
    assert (result[:3] > 250).all() and (result[5:] < 5).all()


@pytest.mark.parametrize(
    ("picture", "resized", "rows", "columns"),
    [
        ((20, 30), (10, 15), slice(1, 9), slice(4, 12)),  # 3.5 -> 4: torchvision rounds a half to the even number
        ((30, 20), (15, 10), slice(4, 12), slice(1, 9)),
        ((20, 33), (10, 16), slice(1, 9), slice(4, 12)),  # the longer side is rounded down
        ((20, 20), (10, 10), slice(1, 9), slice(1, 9)),
        ((5, 7), (10, 14), slice(1, 9), slice(3, 11)),
    ],
)
def test_eval_resizes_the_shorter_side_and_keeps_the_aspect(picture, resized, rows, columns):
    image = Image.fromarray(noise(*picture))
    expected = np.asarray(image.resize(resized[::-1], Image.Resampling.BICUBIC))[rows, columns]
    np.testing.assert_array_equal(EvalTransform((10, 10), (8, 8), "short")(image), expected)


@pytest.mark.parametrize("picture", [(20, 30), (20, 50), (99, 20)])
def test_eval_covers_a_rectangle_of_its_own_aspect(picture):
    transform = EvalTransform((12, 24), (10, 20), "short")
    assert transform(Image.fromarray(noise(*picture))).shape == (10, 20, 3)


def test_eval_transform_of_a_model_rounds_the_resize_down():
    assert eval_transform((224, 224)) == EvalTransform((256, 256), (224, 224), "squash")
    assert eval_transform((240, 240), resize="short") == EvalTransform((274, 274), (240, 240), "short")
    assert eval_transform((224, 224), 1 / 0.9).resize == (248, 248)  # as timm's crop_pct=.9


def test_random_crop_draws_area_and_ratio():
    rng = np.random.default_rng(0)
    boxes = np.array([random_crop_box(1200, 1000, (0.08, 0.4), (3 / 4, 4 / 3), rng) for _ in range(4000)])
    top, left, height, width = boxes.T.astype(float)
    assert top.min() >= 0 and left.min() >= 0 and (top + height).max() <= 1200 and (left + width).max() <= 1000
    area, log_ratio = height * width / 1.2e6, np.log(width / height)
    for value, low, high in ((area, 0.08, 0.4), (log_ratio, -np.log(4 / 3), np.log(4 / 3))):
        quantiles = np.quantile(value, [0, 0.25, 0.5, 0.75, 1])
        np.testing.assert_allclose(quantiles, np.linspace(low, high, 5), atol=0.03 * (high - low))
    np.testing.assert_allclose(np.quantile(top / (1200 - height), [0.1, 0.5, 0.9]), [0.1, 0.5, 0.9], atol=0.03)
    np.testing.assert_allclose(np.quantile(left / (1000 - width), [0.1, 0.5, 0.9]), [0.1, 0.5, 0.9], atol=0.03)
    edges = {random_crop_box(8, 8, (0.75, 0.8), (1, 1), rng)[:2] for _ in range(60)}  # 7 of 8 pixels
    assert edges == {(0, 0), (0, 1), (1, 0), (1, 1)}


@pytest.mark.parametrize(
    ("picture", "scale", "ratio", "box"),
    [
        ((10, 1000), (0.08, 1), (3 / 4, 4 / 3), (0, 493, 10, 13)),
        ((1000, 10), (0.08, 1), (3 / 4, 4 / 3), (493, 0, 13, 10)),
        ((10, 20), (1, 1), (1, 1), (0, 5, 10, 10)),
        ((10, 20), (1, 1), (1 / 2, 1.9), (0, 0, 10, 19)),
        ((5, 1), (1, 1), (3, 3), (2, 0, 1, 1)),
        ((1, 5), (1, 1), (1 / 3, 1 / 3), (0, 2, 1, 1)),
        ((1, 1), (0.3, 0.31), (4 / 3, 4 / 3), (0, 0, 1, 1)),  # every draw is no pixel high
        ((1, 1), (0.3, 0.31), (3 / 4, 3 / 4), (0, 0, 1, 1)),  # every draw is no pixel wide
    ],
)
def test_random_crop_falls_back_to_the_largest_central_one(picture, scale, ratio, box):
    assert random_crop_box(*picture, scale, ratio, np.random.default_rng(0)) == box


def test_train_transform_without_randomness_is_a_resize():
    transform = TrainTransform((8, 8), scale=(1, 1), ratio=(1, 1), hflip=0.0, rand_augment="")
    picture = noise(8, 8)
    np.testing.assert_array_equal(transform(Image.fromarray(picture), np.random.default_rng(0)), picture)


@pytest.mark.parametrize(("height", "width"), [(31, 31), (19, 5), (1, 1)])
def test_train_resize_is_the_antialiased_bicubic_filter(height, width):
    def weights(length, size):
        """Catmull-Rom, widened when it shrinks; the pixels outside of the picture do not count."""
        scale = length / size
        centres = (np.arange(size)[:, None] + 0.5) * scale - 0.5
        x = np.abs(np.arange(length) - centres) / max(scale, 1)
        w = np.where(x < 1, 1.5 * x**3 - 2.5 * x**2 + 1, np.where(x < 2, -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2, 0))
        return w / w.sum(axis=1, keepdims=True)

    picture = 64 + noise(height, width) // 2  # in the middle of the range, so that nothing is clipped
    expected = np.einsum("yh,hwc,xw->yxc", weights(height, 8), picture, weights(width, 8))
    found = np.asarray(augment._resize(picture, (8, 8))).astype(float)
    pillow = np.asarray(Image.fromarray(picture).resize((8, 8), Image.Resampling.BICUBIC)).astype(float)
    assert np.abs(found - expected).max() < 1.1  # two roundings
    assert np.abs(found - pillow).max() <= 1


@pytest.mark.parametrize("format", ["JPEG", "PNG", "array"])
def test_from_file_is_decoding_and_transforming(format):
    picture = noise(40, 50)
    data = picture if format == "array" else encoded(Image.fromarray(picture), format)
    transform = TrainTransform((24, 32))
    for seed in range(4):
        expected = transform(decode(data, "x"), np.random.default_rng(seed))
        np.testing.assert_array_equal(transform.from_file(data, "x", np.random.default_rng(seed)), expected)


@pytest.mark.parametrize(("size", "reduction"), [(100, 1), (99, 2), (49, 4), (24, 8), (12, 8)])
def test_a_large_crop_is_decoded_at_a_fraction(size, reduction, monkeypatch):
    y, x = np.mgrid[:199, :301] / 20
    picture = np.stack([127 + 100 * np.sin(x), 127 + 100 * np.cos(y), 127 + 50 * np.sin(x + y)], -1).astype(np.uint8)
    data, seen = encoded(Image.fromarray(picture), "JPEG", quality=95), []
    whole = jpeg.decode
    monkeypatch.setattr(jpeg, "decode", lambda data, r, rows: seen.append(r) or whole(data, r, rows))
    transform = TrainTransform((size, size), scale=(1, 1), ratio=(1, 1), hflip=0, rand_augment="")
    found = transform.from_file(data, "x", np.random.default_rng(0)).astype(float)
    assert seen == [reduction]
    expected = transform(Image.fromarray(picture), np.random.default_rng(0))
    assert np.abs(found - expected).mean() < 1.5


@pytest.mark.parametrize("keep", [0.3, 0.7, 0.98])
def test_a_cut_file_fails_even_where_the_crop_is_whole(keep):
    data = encoded(Image.fromarray(noise(64, 64)), "JPEG")
    transform, rng = TrainTransform((8, 8), scale=(0.01, 0.01), ratio=(1, 1)), np.random.default_rng(1)
    top, _, height, _ = random_crop_box(64, 64, transform.scale, transform.ratio, np.random.default_rng(1))
    assert top + height <= 16  # within the rows that are left
    with pytest.raises(CorruptImageError, match=r"'n01440764_10\.JPEG'"):
        transform.from_file(data[: int(keep * len(data))], "n01440764_10.JPEG", rng)


def test_crop_does_not_look_over_its_edge():
    picture = np.zeros((10, 20, 3), np.uint8)
    picture[:, :5] = picture[:, 15:] = 255  # white outside the central square
    transform = TrainTransform((40, 40), scale=(1, 1), ratio=(1, 1), rand_augment="")
    assert transform(Image.fromarray(picture), np.random.default_rng(0)).max() == 0


def test_flip_is_horizontal_and_half_of_the_time():
    picture = noise(6, 6)
    transform = TrainTransform((6, 6), scale=(1, 1), ratio=(1, 1), rand_augment="")
    rng = np.random.default_rng(0)
    flips = 0
    for _ in range(600):
        result = transform(Image.fromarray(picture), rng)
        flipped = np.array_equal(result, picture[:, ::-1])
        assert flipped or np.array_equal(result, picture)
        flips += flipped
    assert 250 < flips < 350


def test_rand_augment_comes_after_crop_and_flip(monkeypatch):
    def mark(image, rng):
        assert image.size == (9, 6)
        image.putpixel((0, 0), (1, 2, 3))
        return image

    monkeypatch.setattr(augment.rand_augment, "parse", lambda text: mark)
    result = TrainTransform((6, 9), hflip=1.0)(Image.new("RGB", (50, 40)), np.random.default_rng(0))
    assert tuple(result[0, 0]) == (1, 2, 3)


def test_train_transform_is_a_function_of_its_generator():
    image, transform = Image.fromarray(noise(40, 50)), TrainTransform((24, 32))
    transform = pickle.loads(pickle.dumps(transform))
    before = global_state()
    first = [transform(image, np.random.default_rng(seed)) for seed in range(6)]
    assert global_state() == before
    assert {(result.shape, result.dtype.name) for result in first} == {((24, 32, 3), "uint8")}
    np.testing.assert_array_equal(first, [transform(image, np.random.default_rng(seed)) for seed in range(6)])
    assert len({result.tobytes() for result in first}) == 6


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: EvalTransform((256, 256), (224, 288)), r"crop=\(224, 288\) does not fit into resize=\(256, 256\)"),
        (lambda: EvalTransform(256, (224, 224)), "resize=256"),
        (lambda: EvalTransform((256, 256), (224, 224), "long"), "resize='long' has to be one of squash, short"),
        (lambda: TrainTransform((224, 0)), r"size=\(224, 0\)"),
        (lambda: TrainTransform((224, 224.0)), r"size=\(224, 224.0\)"),
        (lambda: TrainTransform((224, 224), scale=(0.5, 0.1)), "scale="),
        (lambda: TrainTransform((224, 224), scale=(0.5, 1.1)), "scale="),
        (lambda: TrainTransform((224, 224), ratio=(0.0, 1.0)), "ratio="),
        (lambda: TrainTransform((224, 224), hflip=2), "hflip=2"),
        (lambda: TrainTransform((224, 224), rand_augment="rand-m9-w0"), "'w0'"),
    ],
)
def test_wrong_settings_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()
