"""From stored bytes to the uint8 picture that goes to the device: decoding, the training and the evaluation transform.

All sizes are (height, width) in pixels. Normalisation, random erasing, mixup and cutmix come later, on the device.
"""

import io
import math
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageFile, UnidentifiedImageError

from flatten_jax.data import jpeg, rand_augment

RESIZE_RATIO = 256 / 224  # of the evaluation's resize over its crop, where a run's config does not say another
RESIZE_MODES = ("squash", "short")  # of the evaluation; the first where nothing says another
_WIDE = {"I": "integers of 32 bits", "F": "floating-point numbers"}
CROP_ATTEMPTS = 10  # torchvision RandomResizedCrop.get_params
REDUCTIONS = (8, 4, 2)  # libjpeg's scaled inverse transforms that are as fast as the whole one


class CorruptImageError(ValueError):
    """The bytes of an image file cannot be decoded whole.

    Args:
        name: the example, as its source names it.
        reason: what the decoder said.
    """

    def __init__(self, name: str, reason: str):
        super().__init__(name, reason)  # both, so that the error survives pickling on its way out of a worker process
        self.name = name
        self.reason = reason

    def __str__(self) -> str:
        return f"image {self.name!r} cannot be decoded ({self.reason}): replace it or take it out of the data set"


def decode(image: bytes | np.ndarray, name: str) -> Image.Image:
    """Decodes an image file to an RGB picture.

    The pixels are those of torchvision's `ImageFolder` (`Image.open(...).convert("RGB")`), with which the released
    models were trained. The file's content decides about the format, not its name. Alpha is dropped, an EXIF
    orientation is not applied, and of an animation the first picture is taken: docs/pictures.md has a table.

    Args:
        image: the bytes of a file in any format that PIL reads, or a uint8 array (height, width, 3).
        name: what to call the picture in errors.

    Raises:
        CorruptImageError: garbage, or a file that ends too early. Damage inside a JPEG's entropy-coded data can go
            unseen: libjpeg only warns about it, and PIL drops the warning.
        ValueError: an array of another dtype or shape.
    """
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise ValueError(f"image {name!r} is {image.dtype} {image.shape}; it has to be uint8 (height, width, 3)")
        return Image.fromarray(image)
    if ImageFile.LOAD_TRUNCATED_IMAGES:
        # Refused rather than switched off: the flag belongs to the process, and threads decode at the same time.
        raise ValueError("PIL.ImageFile.LOAD_TRUNCATED_IMAGES is True and would let cut files pass: set it to False")
    if jpeg.size(image) and (pixels := jpeg.decode(image)) is not None:
        return Image.fromarray(pixels)
    try:
        with Image.open(io.BytesIO(image)) as file:
            if file.mode.startswith("I;16") or (file.mode == "I" and file.format in ("PNG", "PPM")):
                # PIL clips 16-bit gray at 255. The high byte is what it takes of 16-bit RGB.
                return Image.fromarray((np.asarray(file) >> 8).astype(np.uint8)).convert("RGB")
            if file.mode in ("I", "F"):
                raise ValueError(f"its pixels are {_WIDE[file.mode]}, of which nothing says what is white: save 8 bits")
            return file.convert("RGB")
    except MemoryError:
        raise
    except UnidentifiedImageError as error:
        raise CorruptImageError(name, "not a picture in any format that Pillow reads") from error
    except Exception as error:  # PIL's readers raise OSError, SyntaxError, ValueError, struct.error, ... on bad bytes
        said = str(error).partition(" <_io.")[0]  # "cannot identify image file <_io.BytesIO object at 0x...>"
        raise CorruptImageError(name, f"{type(error).__name__}: {said}") from error


@dataclass(frozen=True)
class EvalTransform:
    """Resizes the picture (bicubic) and takes its central `crop`.

    With the mode "squash" it is resized to `resize`, by which the aspect ratio is lost: the release has (256, 256) and
    crops (224, 224), and `crop == resize` is a resize alone. With "short" the aspect ratio stays and the picture covers
    `resize`: if that is a square, its shorter side is as long (torchvision's Resize of one number).
    """

    resize: tuple[int, int]
    crop: tuple[int, int]
    mode: str = "squash"

    def __post_init__(self):
        if self.mode not in RESIZE_MODES:
            raise ValueError(f"resize={self.mode!r} has to be one of {', '.join(RESIZE_MODES)}")
        _check_size("resize", self.resize)
        _check_size("crop", self.crop)
        if self.crop[0] > self.resize[0] or self.crop[1] > self.resize[1]:
            raise ValueError(f"crop={self.crop} does not fit into resize={self.resize}: make resize at least as large")

    def __call__(self, image: Image.Image) -> np.ndarray:
        """Returns uint8 (crop_height, crop_width, 3)."""
        resize, (height, width) = self._size(image.height, image.width), self.crop
        # round() goes to the even number at a half, as in torchvision's center_crop.
        top, left = (round((outer - inner) / 2) for outer, inner in zip(resize, self.crop, strict=True))
        image = image.resize(resize[::-1], Image.Resampling.BICUBIC)
        return np.asarray(image.crop((left, top, left + width, top + height)))

    def _size(self, height: int, width: int) -> tuple[int, int]:
        """What a picture is resized to."""
        rows, columns = self.resize
        if self.mode == "squash":
            return rows, columns
        # The longer side is rounded down, as in torchvision.
        if rows * width >= columns * height:
            return rows, rows * width // height
        return columns * height // width, columns


def eval_transform(
    image_size: tuple[int, int], resize_ratio: float = RESIZE_RATIO, resize: str = RESIZE_MODES[0]
) -> EvalTransform:
    """To `resize_ratio` times a model's (height, width), rounded down, then the crop that it takes.

    Args:
        resize: "squash", whatever the picture's aspect, or "short": the shorter side to that length.
    """
    size = tuple(math.floor(side * resize_ratio + 1e-6) for side in image_size)
    return EvalTransform(size, tuple(image_size), resize)


@dataclass(frozen=True)
class TrainTransform:
    """Random resized crop, horizontal flip, RandAugment, in the order of timm's `transforms_imagenet_train`.

    Attributes:
        size: (height, width) of the result.
        scale: smallest and largest share of the picture's area that a crop takes.
        ratio: smallest and largest width / height of a crop. With `scale=(1, 1), ratio=(1, 1)` a square picture is
            resized whole, and of any other its central square.
        hflip: probability of the flip.
        rand_augment: timm's string, see `rand_augment.parse`; '' turns RandAugment off.
    """

    size: tuple[int, int]
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    hflip: float = 0.5
    rand_augment: str = "rand-m9-mstd0.5-inc1"

    def __post_init__(self):
        _check_size("size", self.size)
        if not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise ValueError(f"scale={self.scale} has to be (low, high) with 0 < low <= high <= 1")
        if not 0 < self.ratio[0] <= self.ratio[1]:
            raise ValueError(f"ratio={self.ratio} has to be (low, high) with 0 < low <= high")
        if not 0 <= self.hflip <= 1:
            raise ValueError(f"hflip={self.hflip} is not a probability")
        if self.rand_augment:
            rand_augment.parse(self.rand_augment)

    def __call__(self, image: Image.Image, rng: np.random.Generator) -> np.ndarray:
        """Returns uint8 (height, width, 3); every random number is drawn from `rng`."""
        top, left, height, width = random_crop_box(image.height, image.width, self.scale, self.ratio, rng)
        # Cropping first and not resize(box=...), which lets the filter look over the edge of the box: timm's pixels.
        crop = np.asarray(image.crop((left, top, left + width, top + height)))
        return self._finish(_resize(crop, self.size), rng)

    def from_file(self, image: bytes | np.ndarray, name: str, rng: np.random.Generator) -> np.ndarray:
        """As `self(decode(image, name), rng)`, and decodes only as many pixels as the crop needs.

        A JPEG is not decoded below the crop, and at a half, a quarter or an eighth where the crop is still at least as
        large as `size`.

        Raises:
            CorruptImageError: as in `decode`.
        """
        whole = jpeg.size(image)
        if whole is None:
            return self(decode(image, name), rng)
        box = random_crop_box(*whole, self.scale, self.ratio, rng)
        fits = (r for r in REDUCTIONS if all(side >= r * least for side, least in zip(box[2:], self.size, strict=True)))
        reduction = next(fits, 1)
        pixels = jpeg.decode(image, reduction, rows=box[0] + box[2])
        if pixels is None:
            pixels, reduction = np.asarray(decode(image, name)), 1
        top, left, height, width = (side / reduction for side in box)
        rows = slice(math.floor(top), math.ceil(top + height))
        columns = slice(math.floor(left), math.ceil(left + width))
        inner = (left - columns.start, top - rows.start, width, height)
        return self._finish(_resize(pixels[rows, columns], self.size, inner), rng)

    def _finish(self, image: Image.Image, rng: np.random.Generator) -> np.ndarray:
        if rng.random() < self.hflip:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        if self.rand_augment:
            image = rand_augment.parse(self.rand_augment)(image, rng)
        return np.asarray(image)


def random_crop_box(
    height: int, width: int, scale: tuple[float, float], ratio: tuple[float, float], rng: np.random.Generator
) -> tuple[int, int, int, int]:
    """Draws the crop of Inception training as torchvision's and timm's random resized crop do.

    The share of the area is uniform in `scale`, width / height log-uniform in `ratio`. When ten draws do not fit into
    the picture, it is the largest central crop whose ratio is allowed.

    Returns:
        (top, left, height, width) in pixels.
    """
    for _ in range(CROP_ATTEMPTS):
        area = rng.uniform(*scale) * height * width
        aspect = math.exp(rng.uniform(math.log(ratio[0]), math.log(ratio[1])))
        crop_height, crop_width = round(math.sqrt(area / aspect)), round(math.sqrt(area * aspect))
        if 0 < crop_height <= height and 0 < crop_width <= width:
            top, left = rng.integers(height - crop_height + 1), rng.integers(width - crop_width + 1)
            return int(top), int(left), crop_height, crop_width
    crop_height = min(height, max(1, round(width / ratio[0])))
    crop_width = min(width, max(1, round(height * ratio[1])))
    return (height - crop_height) // 2, (width - crop_width) // 2, crop_height, crop_width


def _resize(
    pixels: np.ndarray, size: tuple[int, int], box: tuple[float, float, float, float] | None = None
) -> Image.Image:
    """Resizes uint8 (height, width, 3) by Pillow's antialiased bicubic filter, in a fifth of its time.

    Of the pixels a box (left, top, width, height) may be meant.
    Pillow's pixels differ by the rounding between the two passes, which come in the other order here. Neither are
    nearer to the filter in exact arithmetic.
    """
    # Here, because evaluation and prediction do without it. Its catmull_rom is what Pillow calls bicubic.
    from cykooz_resizer import CropBox, FilterType, ImageData, PixelType, ResizeAlg, ResizeOptions, Resizer

    height, width = size
    result = ImageData(width, height, PixelType.U8x3)
    source = ImageData(pixels.shape[1], pixels.shape[0], PixelType.U8x3, pixels.tobytes())
    bicubic = ResizeAlg.convolution(FilterType.catmull_rom)
    options = ResizeOptions(resize_alg=bicubic, crop_box=None if box is None else CropBox(*box))
    Resizer().resize(source, result, options)  # a new Resizer each time, because threads may not share one
    return Image.frombuffer("RGB", (width, height), result.get_buffer())


def _check_size(what: str, size: tuple[int, int]) -> None:
    if not isinstance(size, tuple | list) or len(size) != 2 or not all(type(side) is int and side > 0 for side in size):
        raise ValueError(f"{what}={size!r} has to be (height, width) in whole pixels")
