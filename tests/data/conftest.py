import io

import numpy as np
import pytest
from PIL import Image


def encode(pixels: np.ndarray, file_format: str = "JPEG", mode: str = "RGB") -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(file, file_format)
    return file.getvalue()


@pytest.fixture
def picture():
    """picture(i, ...) -> the bytes of a small picture that differs from every other i."""

    def make(i: int, file_format: str = "JPEG", mode: str = "RGB") -> bytes:
        pixels = np.random.default_rng(i).integers(0, 256, (6, 8, 3), np.uint8)
        return encode(pixels.repeat(4, 0).repeat(4, 1), file_format, mode)

    return make


@pytest.fixture
def image_folder(tmp_path, picture):
    """train/{ant,bee} with 4 + 3 pictures, test/{ant,bee} with 2 + 2; extensions in every spelling."""
    files = {
        "train/ant": ["a.JPEG", "b.jpg", "c.png", "d.webp"],
        "train/bee": ["e.bmp", "f.jpeg", "g.PNG"],
        "test/ant": ["h.jpg", "i.jpg"],
        "test/bee": ["j.jpg", "k.jpg"],
    }
    formats = {"jpg": "JPEG", "jpeg": "JPEG", "png": "PNG", "webp": "WEBP", "bmp": "BMP"}
    for folder, names in files.items():
        (tmp_path / "images" / folder).mkdir(parents=True)
        for name in names:
            content = picture(ord(name[0]), formats[name.split(".")[1].lower()])
            (tmp_path / "images" / folder / name).write_bytes(content)
    return tmp_path / "images"
