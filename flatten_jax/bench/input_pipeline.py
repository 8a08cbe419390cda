"""The input pipeline: pictures per second that one core decodes, crops and augments, beside Pillow alone.

The pictures are made here, 500 x 375 JPEGs of about 100 kB, the mean size of ImageNet's files.
"""

import io
import math
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image, ImageEnhance

from flatten_jax.data import pipeline, rand_augment
from flatten_jax.data.augment import TrainTransform, random_crop_box
from flatten_jax.data.source import Example, Source
from flatten_jax.runtime import keep_freed_memory

SIZE = (224, 224)
HEIGHT, WIDTH = 375, 500
TRANSFORMS = {"crop + flip": "", "published": "rand-m9-mstd0.5-inc1"}


class NoiseJpegs(Source):
    """JPEGs of coloured noise whose octaves get weaker with their frequency, as those of photographs do."""

    class_names = ("noise",)

    def __init__(self, examples: int, subsampling: str):
        self.files = [_noise_jpeg(index, subsampling) for index in range(examples)]

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Example:
        return Example(self.files[index], 0, f"noise/{index}")


def _noise_jpeg(seed: int, subsampling: str) -> bytes:
    rng = np.random.default_rng(seed)
    picture = np.full((HEIGHT, WIDTH, 3), 128.0)
    for octave in range(1, 9):
        gray, colour = rng.normal(size=(2**octave, 2**octave, 1)), rng.normal(size=(2**octave, 2**octave, 3))
        for channel in range(3):
            noise = Image.fromarray((gray[..., 0] + 0.3 * colour[..., channel]).astype(np.float32))
            picture[..., channel] += (
                40 / octave**0.2 * np.asarray(noise.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC))
            )
    file = io.BytesIO()
    pixels = np.clip(picture, 0, 255).astype(np.uint8)
    Image.fromarray(pixels).save(file, "JPEG", quality=90, subsampling=subsampling)
    return file.getvalue()


def _affine(image: Image.Image, *matrix: float) -> Image.Image:
    fill = rand_augment.FILL
    return image.transform(image.size, Image.Transform.AFFINE, matrix, Image.Resampling.BICUBIC, fillcolor=fill)


# What `rand_augment` computes faster than Pillow, to Pillow's pixels, by Pillow.
SLOW: dict[str, Callable[[Image.Image, float], Image.Image]] = {
    "Rotate": lambda image, v: image.rotate(v, Image.Resampling.BICUBIC, fillcolor=rand_augment.FILL),
    "Sharpness": lambda image, v: ImageEnhance.Sharpness(image).enhance(1 + v),
    "ShearX": lambda image, v: _affine(image, 1, v, 0, 0, 1, 0),
    "ShearY": lambda image, v: _affine(image, 1, 0, 0, v, 1, 0),
    "TranslateXRel": lambda image, v: _affine(image, 1, 0, v * image.width, 0, 1, 0),
    "TranslateYRel": lambda image, v: _affine(image, 1, 0, 0, 0, 1, v * image.height),
}


def pillow_alone(data: bytes, augment: str, rng: np.random.Generator) -> np.ndarray:
    """The same augmentation as torchvision and timm do it: whole decoding, and every operation by Pillow."""
    image = Image.open(io.BytesIO(data)).convert("RGB")
    top, left, height, width = random_crop_box(image.height, image.width, (0.08, 1.0), (3 / 4, 4 / 3), rng)
    image = image.crop((left, top, left + width, top + height)).resize(SIZE[::-1], Image.Resampling.BICUBIC)
    if rng.random() < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if augment:
        drawn = rand_augment.parse(augment)
        for index in rng.integers(len(rand_augment.INCREASING), size=drawn.layers):
            if rng.random() < drawn.probability:
                name, operation = list(rand_augment.INCREASING.items())[index]
                operation = operation._replace(apply=SLOW.get(name, operation.apply))
                image = operation(image, drawn.draw_magnitude(rng), negate=rng.random() < 0.5)
    return np.asarray(image)


def measure(*, repeats: int = 7, examples: int = 64, subsampling: str = "4:2:0") -> list[dict[str, Any]]:
    """Measures this package's training batches, made as a worker process makes them, and Pillow alone.

    All run in turn in this thread, once per repeat, so that a slow moment of the machine hits all. Seconds are those
    of the processor, which other processes do not prolong; `wall` is by the clock, and lower where they wait for it.

    Args:
        repeats: measurements of each.
        examples: pictures of a measurement.
        subsampling: of the JPEGs' colours; "4:4:4" takes longer to decode. ImageNet has both.

    Returns:
        rows with transform ("crop + flip" or "published"), by, images_per_second_per_core (the median), low, high,
        wall, over_pillow (the median of the ratios to Pillow, repeat by repeat), repeats, and kB (of a file, mean).
    """
    if repeats < 1 or examples < 1:
        raise ValueError(f"{repeats=} and {examples=} have to be at least 1")
    keep_freed_memory(64 << 20)  # as in a worker process
    source = NoiseJpegs(examples, subsampling)

    def ours(augment: str, repeat: int) -> None:
        transform = TrainTransform(SIZE, rand_augment=augment)
        pipeline.train_batch(source, transform, batch_size=examples, seed=repeat, step=0)

    def pillow(augment: str, repeat: int) -> None:
        batch = np.empty((examples, *SIZE, 3), np.uint8)
        for place, data in enumerate(source.files):
            batch[place] = pillow_alone(data, augment, np.random.default_rng([repeat, place]))

    contestants = {"flatten_jax": ours, "Pillow alone": pillow}
    seconds: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for repeat in range(repeats + 1):
        for transform, augment in TRANSFORMS.items():
            for by, run in contestants.items():
                began = time.process_time(), time.perf_counter()
                run(augment, repeat)
                took = time.process_time() - began[0], time.perf_counter() - began[1]
                if repeat:  # the first one warms up
                    seconds.setdefault((transform, by), []).append(took)
    rows = []
    for (transform, by), taken in seconds.items():
        speeds = [examples / processor for processor, _ in taken]
        ratios = [slow[0] / own[0] for slow, own in zip(seconds[transform, "Pillow alone"], taken, strict=True)]
        rows.append(
            {
                "transform": transform,
                "by": by,
                "images_per_second_per_core": statistics.median(speeds),
                "low": min(speeds),
                "high": max(speeds),
                "wall": statistics.median(examples / wall for _, wall in taken),
                "over_pillow": statistics.median(ratios),
                "repeats": repeats,
                "kB": statistics.mean(map(len, source.files)) / 1000,
            }
        )
    return rows


def cores(images_per_second: float, images_per_second_per_core: float) -> int:
    """Cores that keep up with a training that takes `images_per_second`."""
    return math.ceil(images_per_second / images_per_second_per_core)
