"""The table of docs/pictures.md, row by row."""

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from flatten_jax.data.augment import CorruptImageError, decode

Y, X = np.mgrid[0:30, 0:40]
PIXELS = np.stack([X * 6, Y * 8, (X + Y) * 3], -1).astype(np.uint8)
PICTURE = Image.fromarray(PIXELS)
GRAY16 = (np.linspace(0, 65535, 40)[None] * np.ones((30, 1))).astype(np.uint16)
DOC = Path(__file__).parents[2] / "docs" / "pictures.md"


def saved(picture, form, **options):
    file = io.BytesIO()
    picture.save(file, form, **options)
    return file.getvalue()


def looks(data, expected=PIXELS, most=0):
    pixels = np.asarray(decode(data, "x")).astype(int)
    assert pixels.shape == (*expected.shape[:2], 3)
    assert np.abs(pixels - expected).max() <= most


def refused(data, said):
    with pytest.raises(CorruptImageError, match=said):
        decode(data, "x.jpg")


def png(width, height, raw):
    """16-bit RGB, which Pillow does not write."""

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(raw)) + chunk(b"IEND", b"")


def modes():
    gray = np.asarray(PICTURE.convert("L"))[..., None]
    looks(saved(PICTURE.convert("L"), "PNG"), gray)
    looks(saved(PICTURE.convert("1"), "PNG"), np.asarray(PICTURE.convert("1").convert("L"))[..., None])
    looks(saved(PICTURE.quantize(64), "PNG"), np.asarray(PICTURE.quantize(64).convert("RGB")).astype(int))
    looks(saved(PICTURE.convert("CMYK"), "TIFF"), most=1)
    looks(saved(PICTURE.convert("LAB"), "TIFF"), most=32)
    looks(saved(PICTURE.convert("YCbCr"), "TIFF"), most=32)


def transparency():
    rgba = np.dstack([PIXELS, np.full((30, 40), 7, np.uint8)])
    looks(saved(Image.fromarray(rgba), "PNG"))
    logo = np.zeros((30, 40, 4), np.uint8)
    logo[10:20, 10:20, 3] = 255
    looks(saved(Image.fromarray(logo), "PNG"), np.zeros((30, 40, 3)))
    palette = PICTURE.quantize(64)
    looks(saved(palette, "PNG", transparency=0), np.asarray(palette.convert("RGB")).astype(int))


def sixteen_bits():
    high = (GRAY16 >> 8)[..., None]
    looks(saved(Image.fromarray(GRAY16), "PNG"), high)
    looks(saved(Image.fromarray(GRAY16), "TIFF"), high)
    looks(b"P5\n40 30\n65535\n" + GRAY16.astype(">u2").tobytes(), high)
    looks(png(40, 30, b"".join(b"\0" + (row.astype(">u2") * 257).tobytes() for row in PIXELS)))


def wide():
    refused(
        saved(Image.fromarray(GRAY16.astype(np.int32)), "TIFF"), "integers of 32 bits, .* nothing says what is white"
    )
    refused(saved(Image.fromarray(GRAY16.astype(np.float32)), "TIFF"), "floating-point numbers, of which nothing says")


def animation():
    others = [Image.fromarray(np.roll(PIXELS, k, 0)) for k in (10, 20)]
    looks(saved(PICTURE, "PNG", save_all=True, append_images=others))
    looks(saved(PICTURE, "WEBP", save_all=True, append_images=others, lossless=True))
    first = PICTURE.quantize(8).convert("RGB")
    looks(saved(first, "GIF", save_all=True, append_images=others), np.asarray(first).astype(int))


def rotation():
    exif = Image.Exif()
    exif[0x0112] = 6
    assert saved(PICTURE, "JPEG", exif=exif) != saved(PICTURE, "JPEG")
    looks(saved(PICTURE, "JPEG", exif=exif), np.asarray(decode(saved(PICTURE, "JPEG"), "x")).astype(int))


def odd_jpegs():
    plain = np.asarray(decode(saved(PICTURE, "JPEG"), "x")).astype(int)
    looks(saved(PICTURE, "JPEG") + bytes(500), plain)
    looks(saved(PICTURE, "JPEG", progressive=True), plain)


def broken():
    data = saved(PICTURE, "JPEG")
    refused(data[: len(data) * 2 // 3], "(?i)truncated")
    for nothing in (b"", b"<html><body>404</body></html>"):
        refused(nothing, "not a picture in any format that Pillow reads")


def huge():
    refused(png(20000, 20000, b""), "DecompressionBomb")


ROWS = {
    "grayscale, one bit, palette, CMYK, LAB, YCbCr": modes,
    "transparency (RGBA, LA, palette)": transparency,
    "16 bits a channel, gray or RGB": sixteen_bits,
    "integers of 32 bits, floating-point numbers (TIFF)": wide,
    "animation (GIF, APNG, WebP)": animation,
    "EXIF rotation": rotation,
    "progressive JPEG, bytes after the end": odd_jpegs,
    "cut off, empty, or not a picture (a web page named .jpg)": broken,
    "more than 179 million pixels": huge,
}


@pytest.mark.parametrize("row", ROWS)
def test_pictures_become_what_the_table_says(row):
    ROWS[row]()


def test_every_row_of_the_table_is_tested():
    table = DOC.read_text().split("\n\n")[2].splitlines()
    assert [line.split(" | ")[0].removeprefix("| ") for line in table[2:]] == list(ROWS)
