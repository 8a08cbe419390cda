"""RandAugment (Cubuk et al. 2019, arXiv 1909.13719) with the operations, ranges and string grammar of timm.

The recipe's ``rand-m9-mstd0.5-inc1`` is defined only by ``timm/data/auto_augment.py``, which is "timm" below. The
release pins timm 0.4.12; what is used here is the same in timm 1.0. "Paper" is AutoAugment (arXiv 1805.09501), table 6,
where most of the ranges come from.
"""

import functools
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

# Magnitudes are tenths of the strongest setting: timm _LEVEL_DENOM, called _MAX_LEVEL in 0.4.12.
MAX_MAGNITUDE = 10.0
# What a geometric operation pulls in from outside: round(255 * ImageNet mean), timm transforms_factory.py.
FILL = (124, 116, 104)

# Parts of the string: default (timm rand_augment_transform), type, lowest and highest value.
_PARTS = {
    "m": (10.0, float, 0, 10),
    "n": (2, int, 1, 100),
    "p": (0.5, float, 0, 1),
    "mstd": (0.0, float, 0, 100),  # above 100 newer timm draws uniform magnitudes: refused rather than read otherwise
    "inc": (0, int, 0, 1),
}


class Operation(NamedTuple):
    """One operation: what it does to a picture, and how its value follows from the magnitude."""

    apply: Callable[[Image.Image, float], Image.Image]
    value: Callable[[float], float] = lambda strength: 0.0  # strength = magnitude / 10, in [0, 1]
    signed: bool = False  # the value is negated for half of the pictures

    def __call__(self, image: Image.Image, magnitude: float, negate: bool = False) -> Image.Image:
        value = self.value(magnitude / MAX_MAGNITUDE)
        return self.apply(image, -value if self.signed and negate else value)


def _affine(image: Image.Image, *matrix: float) -> Image.Image:
    """Bicubic because timm hands the interpolation of the crop, when it is a fixed one, to these operations too."""
    from flatten_jax.data.affine import affine  # here, so that only training waits for Numba

    return affine(image, matrix, FILL)


def _rotate(image: Image.Image, degrees: float) -> Image.Image:
    """About the centre, counterclockwise, with Pillow's roundings."""
    angle = -math.radians(degrees % 360)
    cos, sin = round(math.cos(angle), 15), round(math.sin(angle), 15)
    x, y = image.width / 2, image.height / 2
    return _affine(image, cos, sin, cos * -x + sin * -y + x, -sin, cos, -sin * -x + cos * -y + y)


def _posterize(image: Image.Image, bits: float) -> Image.Image:
    # Not ImageOps.posterize: Pillow 13 refuses 0 bits, which the recipe reaches whenever the noise takes 9 to 10 (a
    # picture in 44 of those posterized). Older Pillow, and so the release, makes such a picture black.
    mask = 256 - 2 ** (8 - int(bits))
    return image.point([i & mask for i in range(256)] * 3)


def _solarize_add(image: Image.Image, addend: float) -> Image.Image:
    # The threshold 128 is the default of timm solarize_add.
    return image.point([min(255, i + int(addend)) if i < 128 else i for i in range(256)] * 3)


def _sharpness(image: Image.Image, value: float) -> Image.Image:
    """ImageEnhance.Sharpness, whose smoothing Pillow computes as a general 3 x 3 filter: here in integers."""
    pixels = np.asarray(image)
    smooth = pixels.copy()  # Pillow leaves the border as it is
    rows = pixels.astype(np.uint16)
    rows = rows[:-2] + rows[1:-1] + rows[2:]
    total = rows[:, :-2] + rows[:, 1:-1] + rows[:, 2:]
    smooth[1:-1, 1:-1] = (total + 4 * pixels[1:-1, 1:-1].astype(np.uint16) + 6) // 13  # a half never happens
    return Image.blend(Image.fromarray(smooth), image, 1.0 + value)


def _enhance(enhancer: type) -> Callable[[Image.Image, float], Image.Image]:
    # PIL's factor 1 is "no change"; a value is the distance from it.
    return lambda image, value: enhancer(image).enhance(1.0 + value)


def _enhancement(apply: Callable[[Image.Image, float], Image.Image]) -> Operation:
    # Factor in [0.1, 1.9]: paper. From 1 outwards to both sides: timm _enhance_increasing_level_to_arg.
    return Operation(apply, lambda strength: 0.9 * strength, signed=True)


def _plain(name: str) -> Operation:
    # The same range run through from 0.1 to 1.9: timm _enhance_level_to_arg.
    return INCREASING[name]._replace(value=lambda strength: 1.8 * strength - 0.9, signed=False)


# timm _RAND_INCREASING_TRANSFORMS: every operation gets stronger with the magnitude. timm's names, less "Increasing".
INCREASING: dict[str, Operation] = {
    "AutoContrast": Operation(lambda image, _: ImageOps.autocontrast(image)),
    "Equalize": Operation(lambda image, _: ImageOps.equalize(image)),
    "Invert": Operation(lambda image, _: ImageOps.invert(image)),
    # Up to 30 degrees: paper; timm _rotate_level_to_arg.
    "Rotate": Operation(_rotate, lambda strength: 30.0 * strength, signed=True),
    # Bits kept, 4 down to 0: timm _posterize_increasing_level_to_arg. The paper's range is 8 to 4.
    "Posterize": Operation(_posterize, lambda strength: 4 - int(4 * strength)),
    # Values from the threshold on are inverted, 256 (none) down to 0: paper; timm _solarize_increasing_level_to_arg.
    "Solarize": Operation(ImageOps.solarize, lambda strength: 256 - int(256 * strength)),
    # Up to 110 added below 128: timm _solarize_add_level_to_arg. Not in the paper.
    "SolarizeAdd": Operation(_solarize_add, lambda strength: int(110 * strength)),
    "Color": _enhancement(_enhance(ImageEnhance.Color)),
    "Contrast": _enhancement(_enhance(ImageEnhance.Contrast)),
    "Brightness": _enhancement(_enhance(ImageEnhance.Brightness)),
    "Sharpness": _enhancement(_sharpness),
    # Up to 0.3 pixels a line: paper; timm _shear_level_to_arg.
    "ShearX": Operation(lambda image, v: _affine(image, 1, v, 0, 0, 1, 0), lambda s: 0.3 * s, signed=True),
    "ShearY": Operation(lambda image, v: _affine(image, 1, 0, 0, v, 1, 0), lambda s: 0.3 * s, signed=True),
    # Up to 0.45 of the side: timm _translate_rel_level_to_arg (translate_pct). The paper's 150 of 331 pixels. timm's
    # translate_const is a matter of its absolute translations, which this set does not have.
    "TranslateXRel": Operation(
        lambda image, v: _affine(image, 1, 0, v * image.width, 0, 1, 0), lambda s: 0.45 * s, signed=True
    ),
    "TranslateYRel": Operation(
        lambda image, v: _affine(image, 1, 0, 0, 0, 1, v * image.height), lambda s: 0.45 * s, signed=True
    ),
}

# timm _RAND_TRANSFORMS: posterize and solarize get weaker with the magnitude, the enhancements go from less to more.
PLAIN: dict[str, Operation] = INCREASING | {
    "Posterize": INCREASING["Posterize"]._replace(value=lambda strength: int(4 * strength)),
    "Solarize": INCREASING["Solarize"]._replace(value=lambda strength: int(256 * strength)),
    "Color": _plain("Color"),
    "Contrast": _plain("Contrast"),
    "Brightness": _plain("Brightness"),
    "Sharpness": _plain("Sharpness"),
}


@dataclass(frozen=True)
class RandAugment:
    """Applies randomly chosen operations to a picture.

    Attributes:
        magnitude: mean magnitude, 0 to 10.
        layers: number of operations drawn for a picture, uniformly and with replacement.
        probability: chance that a drawn operation is applied.
        std: standard deviation of the magnitude, in magnitudes; a noisy magnitude is clipped to [0, 10].
        increasing: which table, `INCREASING` or `PLAIN`.
    """

    magnitude: float = 9.0
    layers: int = 2
    probability: float = 0.5
    std: float = 0.5
    increasing: bool = True

    def __call__(self, image: Image.Image, rng: np.random.Generator) -> Image.Image:
        """Returns an RGB picture of the size of `image`; every random number is drawn from `rng`."""
        operations = list((INCREASING if self.increasing else PLAIN).values())
        for index in rng.integers(len(operations), size=self.layers):
            if rng.random() < self.probability:
                image = operations[index](image, self.draw_magnitude(rng), negate=rng.random() < 0.5)
        return image

    def draw_magnitude(self, rng: np.random.Generator) -> float:
        return float(np.clip(rng.normal(self.magnitude, self.std), 0.0, MAX_MAGNITUDE))


@functools.cache
def parse(text: str) -> RandAugment:
    """Reads timm's grammar ``rand-m<magnitude>-n<layers>-p<probability>-mstd<std>-inc<0|1>``, parts in any order.

    Parts left out are m10, n2, p0.5, mstd0, inc0 as in timm. One difference: timm reads inc0 as inc1 (the string "0" is
    true), here it is the plain set.

    Raises:
        ValueError: a part that is unknown, given twice or out of range.
    """
    head, *parts = text.split("-")
    if head != "rand":
        raise ValueError(f"rand_augment={text!r} has to start with 'rand', as in 'rand-m9-mstd0.5-inc1'; '' is off")
    values: dict[str, float] = {}
    for part in parts:
        match = re.fullmatch(r"(mstd|inc|m|n|p)(\d+(?:\.\d+)?)", part)
        if match is None:
            raise ValueError(
                f"rand_augment={text!r}: the part {part!r} is not supported; use m<magnitude>, n<layers>, "
                "p<probability>, mstd<std> and inc<0|1>"
            )
        key, number = match.groups()
        _, kind, low, high = _PARTS[key]
        if key in values:
            raise ValueError(f"rand_augment={text!r}: the part {part!r} sets {key!r} a second time")
        if not low <= float(number) <= high or (kind is int and "." in number):
            raise ValueError(f"rand_augment={text!r}: the part {part!r} has to be {kind.__name__}, {low} to {high}")
        values[key] = kind(number)
    values = {key: default for key, (default, *_) in _PARTS.items()} | values
    return RandAugment(
        magnitude=values["m"],
        layers=values["n"],
        probability=values["p"],
        std=values["mstd"],
        increasing=bool(values["inc"]),
    )
