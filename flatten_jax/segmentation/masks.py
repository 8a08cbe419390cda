"""Masks as files hold them, made class ids: 8-bit grey PNGs and nothing else, every id accounted for."""

import io
import struct
from collections.abc import Sequence

import numpy as np
from PIL import Image

from flatten_jax.data.augment import CorruptImageError, decode

IGNORED = 255  # the id of pixels that neither the loss nor an evaluation looks at
MAX_CLASSES = 254  # 254 marks what is no id at all
_UNKNOWN = 254
_PNG = b"\x89PNG\r\n\x1a\n"
_COLOURS = {2: "RGB", 3: "palette", 4: "grey with transparency", 6: "RGB with transparency"}
_AS_GREY = "save the ids themselves as 8-bit grey, PIL.Image.fromarray(ids.astype('uint8')).save(file), where ids are "


class MaskError(ValueError):
    """A mask that cannot be trained on or evaluated by; the text names it and says what to do."""


def png_size(file: bytes, name: str) -> tuple[int, int]:
    """(height, width) of a mask by its header.

    Raises:
        MaskError: no PNG, or one of other pixels than 8-bit grey.
    """
    if not file.startswith(_PNG) or len(file) < 26:
        raise MaskError(
            f"the mask {name} is no PNG: masks are 8-bit grey PNGs; a JPEG has changed the ids, make it anew"
        )
    width, height, depth, colour = struct.unpack(">IIBB", file[16:26])
    if colour == 3:
        raise MaskError(f"the mask {name} is a palette PNG: {_AS_GREY}numpy.array(PIL.Image.open(file))")
    if colour:
        raise MaskError(
            f"the mask {name} is a PNG of {_COLOURS.get(colour, colour)}, not of ids: {_AS_GREY}what its colours mean"
        )
    if depth != 8:
        raise MaskError(f"the mask {name} is a {depth}-bit PNG: {_AS_GREY}its own, 0 to 255")
    return height, width


def read_mask(file: bytes, name: str) -> np.ndarray:
    """The ids of a mask as they are stored, uint8 (height, width).

    Raises:
        MaskError: as in `png_size`.
        CorruptImageError: it cannot be decoded whole.
    """
    png_size(file, name)
    try:
        with Image.open(io.BytesIO(file)) as image:
            return np.array(image)
    except MemoryError:
        raise
    except Exception as error:  # Pillow raises OSError, SyntaxError, ... on bad bytes
        raise CorruptImageError(name, f"{type(error).__name__}: {str(error).partition(' <_io.')[0]}") from error


def id_table(
    num_classes: int, *, reduce_zero_label: bool = False, first: int = 0, ignored: Sequence[int] = ()
) -> np.ndarray:
    """What becomes of every stored id: uint8 (256,), a class, IGNORED, or no id.

    Args:
        num_classes: there are.
        reduce_zero_label: 0 means no class, and class 0 is stored as 1.
        first: stored id of class 0.
        ignored: stored ids of no class, besides 255.
    """
    if not 1 <= num_classes <= MAX_CLASSES:
        raise ValueError(f"{num_classes=} of masks has to be 1 to {MAX_CLASSES}: 255 means no class")
    first, ignored = (1, (0, *ignored)) if reduce_zero_label else (first, tuple(ignored))
    table = np.full(256, _UNKNOWN, np.uint8)
    table[first : first + num_classes] = np.arange(num_classes)
    table[[*ignored, IGNORED]] = IGNORED
    return table


def class_ids(stored: np.ndarray, table: np.ndarray, name: str) -> np.ndarray:
    """Stored ids -> class ids; MaskError names those that `table` has no class for."""
    ids = table[stored]
    if (ids == _UNKNOWN).any():
        wrong = ", ".join(map(str, np.unique(stored[ids == _UNKNOWN])[:5]))
        classes = np.flatnonzero(table < _UNKNOWN)
        raise MaskError(
            f"the mask {name} has the ids {wrong}, and the {len(classes)} classes are {classes[0]} to {classes[-1]}: "
            "255 is for pixels of none, 0 too with segmentation.reduce_zero_label=True; or set model.num_classes"
        )
    return ids


def check_sizes(image: bytes | np.ndarray, mask: tuple[int, int], name: str) -> None:
    """MaskError where a picture is of another size than its mask."""
    if isinstance(image, np.ndarray):
        size = image.shape[:2]
    else:
        try:
            with Image.open(io.BytesIO(image)) as file:  # reads the header alone
                size = file.size[::-1]
        except Exception:
            size = decode(image, name).size[::-1]  # which says what is wrong
    if tuple(size) != tuple(mask):
        raise MaskError(
            f"the picture {name} is {size[0]} x {size[1]} (height x width), its mask {mask[0]} x {mask[1]}: "
            "make them of one size, the mask without interpolation"
        )
