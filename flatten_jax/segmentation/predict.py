"""The classes of every pixel of pictures of any size, by the windows and the arithmetic of the evaluation."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from flatten_jax.data.source import Example
from flatten_jax.models.images import IMAGENET_MEAN, IMAGENET_STD, normalize
from flatten_jax.runtime import compiler_options
from flatten_jax.segmentation.model import Segmenter
from flatten_jax.segmentation.transforms import EvalTransform, Size
from flatten_jax.segmentation.windows import ROWS, axis_weights, predicted_rows
from flatten_jax.weights.segmenter import variables_at


class PixelPredictor:
    """A segmenter with what it needs to look at pictures.

        ids = PixelPredictor(model, variables)(picture)

    Every size that pictures are resized to is compiled for when it first comes; with windows there is one.

    Args:
        model: from `create_segmenter`.
        variables: {"params": ...} of it, and its other collections.
        transform: how pictures are resized and cut; default: whole, the shorter side that of the model.
        mean, std: of the channels, by which pictures are normalised.
    """

    def __init__(
        self,
        model: Segmenter,
        variables: Mapping[str, Any],
        transform: EvalTransform | None = None,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
    ):
        short = min(model.image_size)
        self.transform = transform or EvalTransform((short, 4 * short))
        self._model, self._mean, self._std = model, tuple(mean), tuple(std)
        self._variables = jax.device_put(dict(variables))
        self._known: dict[Size, tuple[Any, Any]] = {}

    def __call__(self, picture: np.ndarray) -> np.ndarray:
        """uint8 (height, width, 3) of any size -> class ids, uint8 (height, width)."""
        size = picture.shape[:2]
        resized = self.transform.resized_size(size)
        windows = self.transform.windows(Example(picture, None, "a picture"))
        window = windows.shape[1:3]
        answer, variables = self._at(window)
        logits = jnp.stack([answer(variables, image[None])[0] for image in windows])
        places = jnp.array(self.transform.places(resized))
        return np.asarray(ids_of_windows(logits, places, jnp.array(resized), size, window))

    def _at(self, size: Size) -> tuple[Any, Any]:
        """A compiled model for windows of a size, and its variables."""
        if size not in self._known:
            model = self._model.at_size(size)
            variables = jax.device_put(variables_at(self._model, self._variables, model))
            apply = lambda variables, images: model.apply(variables, normalize(images, self._mean, self._std))  # noqa: E731
            self._known[size] = jax.jit(apply, compiler_options=compiler_options()), variables
        return self._known[size]


@functools.partial(jax.jit, static_argnames=("size", "window"))
def ids_of_windows(logits: jax.Array, places: jax.Array, resized: jax.Array, size: Size, window: Size) -> jax.Array:
    """Class ids (height, width), uint8, of a picture, see `segmentation.windows`.

    Args:
        logits: (windows, cells down, cells across, classes).
        places: (windows, 2), (top, left) of the windows in the resized picture.
        resized: (2,), (height, width) of that.
        size: (height, width) of the picture itself.
        window: (height, width) of a window.
    """
    valid = jnp.ones(len(places), bool)

    def weights(at: jax.Array, axis: int) -> jax.Array:
        lengths = jnp.array(size[axis]), resized[axis]
        return axis_weights(at, *lengths, places[:, axis], valid, window[axis], logits.shape[1 + axis])[None]

    across = weights(jnp.arange(size[1]), 1)

    def rows(first: jax.Array) -> jax.Array:
        down = weights(first + jnp.arange(ROWS), 0)
        return predicted_rows(logits[None], down, across, len(places))[0].astype(jnp.uint8)

    firsts = jnp.arange(-(-size[0] // ROWS)) * ROWS
    return jax.lax.map(rows, firsts).reshape(-1, size[1])[: size[0]]
