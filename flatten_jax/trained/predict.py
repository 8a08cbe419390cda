"""The likeliest classes of pictures: from files or arrays, in batches, with the preprocessing of the evaluation."""

import csv
import glob
import io
import itertools
import json
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, Self, TextIO

import flax.linen as nn
import jax
import numpy as np
from PIL import UnidentifiedImageError
from tqdm import tqdm

from flatten_jax.data import imagenet
from flatten_jax.data.augment import RESIZE_MODES, RESIZE_RATIO, CorruptImageError, decode, eval_transform
from flatten_jax.data.folder import EXTENSIONS, SLOW_SECONDS
from flatten_jax.models.images import IMAGENET_MEAN, IMAGENET_STD, normalize
from flatten_jax.runtime import compiler_options
from flatten_jax.segmentation.model import Segmenter
from flatten_jax.trained.load import load_trained
from flatten_jax.training.sharding import make_mesh, over_data, replicated

FORMATS = ("text", "csv", "json")
_MANY = 100  # pictures, of which a bar shows the progress
_READ_THREADS = 4  # PIL releases the GIL while it decodes and resizes


class Guess(NamedTuple):
    """One class for a picture.

    Attributes:
        label: its number.
        class_name: as the data set has it, such as a folder's name or ImageNet's "n02012849".
        name: to read: of ImageNet's ids "crane", else `class_name`.
        probability: softmax of the logits.
    """

    label: int
    class_name: str
    name: str
    probability: float


class Prediction(NamedTuple):
    """The guesses for a picture, best first; or none, and `error`, where it cannot be read."""

    file: str
    top: tuple[Guess, ...]
    error: str | None = None


class Predictor:
    """A model with what it needs to look at pictures.

        predictor = Predictor.load("runs/mine")
        for prediction in predictor(find_pictures(["holiday/", "*.jpg"])): ...

    Args:
        model: a classifier from `create_model`.
        variables: {"params": ...} of it, and its other collections.
        class_names: one for each label; None: the labels.
        resize_ratio: `eval.resize_ratio` of the config that the model was trained with.
        resize: its `eval.resize`.
        mean: its `data.mean`.
        std: its `data.std`.
    """

    def __init__(
        self,
        model: nn.Module,
        variables: Mapping[str, Any],
        class_names: Sequence[str] | None = None,
        resize_ratio: float = RESIZE_RATIO,
        resize: str = RESIZE_MODES[0],
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
    ):
        if isinstance(model, Segmenter):
            raise ValueError("this is a segmenter, with a class for each pixel: flatten-jax segment shows them")
        if not model.num_classes or model.features_only:
            raise ValueError(
                f"only a classifier predicts: num_classes={model.num_classes}, features_only={model.features_only}"
            )
        names = tuple(class_names or map(str, range(model.num_classes)))
        if len(names) != model.num_classes:
            raise ValueError(f"{len(names)} class_names were given for a model of {model.num_classes} classes")
        readable = imagenet.class_names()
        self.class_names, self._names = names, tuple(readable.get(name, name) for name in names)
        self.transform = eval_transform(model.image_size, resize_ratio, resize)
        self._mesh = make_mesh(jax.local_devices())
        self._variables = jax.device_put(dict(variables), replicated(self._mesh))
        self._log_probabilities = jax.jit(
            lambda variables, images: nn.log_softmax(model.apply(variables, normalize(images, mean, std))),
            compiler_options=compiler_options(),
        )

    @classmethod
    def load(cls, source: str | os.PathLike, name: str | None = None, **options: Any) -> Self:
        """From a run's folder, a shared folder or a file of weights; arguments as in `load_trained`."""
        trained = load_trained(source, name, **options)
        return cls(trained.model, trained.variables, trained.class_names, **trained.preprocessing)

    def __call__(
        self, pictures: Iterable[str | os.PathLike | np.ndarray], *, top: int = 5, batch_size: int = 32
    ) -> Iterator[Prediction]:
        """A prediction for each picture, in their order; what cannot be read has an `error` instead of guesses.

        Batches are spread over all devices of this process. One is read while the one before it is computed. The last
        is filled up with black, so that one shape is compiled.

        Args:
            pictures: paths, or uint8 arrays (height, width, 3) of any size.
            top: how many guesses, at most the number of classes.
            batch_size: computed at once, rounded up to as many on every device.

        Raises:
            ValueError: the model's answer is not a number.
        """
        if top < 1 or batch_size < 1:
            raise ValueError(f"{top=} and {batch_size=} must be at least 1")
        left, devices = iter(pictures), self._mesh.size

        def spread(count: int) -> int:
            return -(-count // devices) * devices

        with ThreadPoolExecutor(_READ_THREADS) as pool:

            def start() -> tuple[list[Any], list[Future]]:
                chunk = list(itertools.islice(left, spread(batch_size)))
                return chunk, [pool.submit(self._read, picture) for picture in chunk]

            chunk, reads = start()
            rows = spread(len(chunk))  # of every batch: few pictures make a small one
            while chunk:
                following = start()
                yield from self._batch(chunk, [read.result() for read in reads], rows, top)
                chunk, reads = following

    def _read(self, picture: str | os.PathLike | np.ndarray) -> np.ndarray | str:
        """uint8 (height, width, 3) of the model's size, or what is wrong."""
        try:
            if isinstance(picture, np.ndarray):
                return self.transform(decode(picture, "an array"))
            if os.path.isdir(picture):
                return f"a folder without pictures ({', '.join(EXTENSIONS)})"
            return self.transform(decode(Path(picture).read_bytes(), os.fspath(picture)))
        except CorruptImageError as error:
            unknown = isinstance(error.__cause__, UnidentifiedImageError)
            return "not a picture in any format that PIL reads" if unknown else f"cannot be decoded: {error.reason}"
        except OSError as error:
            return error.strerror or str(error)
        except ValueError as error:
            return str(error)

    def _batch(self, pictures: list[Any], read: list[np.ndarray | str], rows: int, top: int) -> Iterator[Prediction]:
        images = np.zeros((rows, *self.transform.crop, 3), np.uint8)
        for row, image in enumerate(read):
            if isinstance(image, np.ndarray):
                images[row] = image
        images = jax.device_put(images, over_data(self._mesh))
        answers = np.asarray(self._log_probabilities(self._variables, images))
        for picture, image, answer in zip(pictures, read, answers, strict=False):  # what follows is padding
            file = "" if isinstance(picture, np.ndarray) else os.fspath(picture)
            if isinstance(image, str):
                yield Prediction(file, (), image)
                continue
            if np.isnan(answer).any():
                raise ValueError(f"the model's answer to {file or 'a picture'} is not a number: its weights are broken")
            best = np.argsort(-answer, kind="stable")[:top].tolist()
            yield Prediction(file, tuple(self._guess(label, answer[label]) for label in best))

    def _guess(self, label: int, log_probability: float) -> Guess:
        return Guess(label, self.class_names[label], self._names[label], float(np.exp(log_probability)))


def find_pictures(sources: Iterable[str | os.PathLike]) -> list[str]:
    """Paths of the pictures that are meant, each once.

    Args:
        sources: files; folders, for all pictures below them (by extension, hidden ones left out; links are followed),
            in sorted order;
            patterns such as "more/**/*.jpg", for what they match. What is not there, and a folder without pictures, is
            returned as it is: reading it says what is wrong.
    """
    found: dict[str, None] = {}
    with tqdm(desc="looking for pictures", unit="", delay=SLOW_SECONDS, disable=None) as bar:
        for source in map(os.path.expanduser, map(os.fspath, sources)):
            matches = [source] if os.path.lexists(source) else sorted(glob.glob(source, recursive=True))
            for match in matches or [source]:
                found |= dict.fromkeys(_below(match, bar) if os.path.isdir(match) else [match])
    return list(found)


def _below(folder: str, bar: tqdm) -> list[str]:
    files, seen = [], set()
    for root, folders, names in os.walk(folder, followlinks=True):
        where = os.path.realpath(root)
        if where in seen:  # a link to a folder above it
            folders.clear()
            continue
        seen.add(where)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        pictures = sorted(n for n in names if n.lower().endswith(EXTENSIONS) and not n.startswith("."))
        files += [os.path.join(root, name) for name in pictures]
        bar.update(len(pictures))
    return files or [folder]


def report(
    predictions: Iterable[Prediction],
    total: int,
    form: str,
    output: str | os.PathLike | None = None,
    *,
    overwrite: bool = False,
) -> int:
    """Writes predictions to a file, or prints them, names on stderr what could not be read, and counts it.

    Args:
        total: how many there will be; of many, a bar on a terminal shows the progress.
        form: see `write_predictions`.
        output: a file; None prints.
        overwrite: replace an existing file; otherwise that is a FileExistsError.
    """
    in_the_way = output is None and sys.stdout.isatty()  # the answers themselves show the progress
    failed = 0
    with tqdm(total=total, unit=" pictures", disable=None if total >= _MANY and not in_the_way else True) as bar:

        def watched() -> Iterator[Prediction]:
            nonlocal failed
            for prediction in predictions:
                bar.update()
                if prediction.error is not None:
                    failed += 1
                    bar.write(f"{prediction.file}: {prediction.error}", file=sys.stderr)
                yield prediction

        if output is None:
            if isinstance(sys.stdout, io.TextIOWrapper):  # names of files are bytes, and go out as they came in
                sys.stdout.reconfigure(encoding="utf-8", errors="surrogateescape")
            write_predictions(watched(), sys.stdout, form)
        else:
            mode = "w" if overwrite else "x"
            with open(output, mode, encoding="utf-8", errors="surrogateescape", newline="") as file:
                write_predictions(watched(), file, form)
    return failed


def write_predictions(predictions: Iterable[Prediction], file: TextIO, form: str) -> None:
    """Writes them as they come; those with an error are left out.

    Args:
        form: "text" for people; "csv", a row for each guess under a line of headings; "json", a list of
            {"file", "top": [{"label", "class", "name", "probability"}]}.
    """
    if form not in FORMATS:
        raise ValueError(f"{form=} must be one of {', '.join(FORMATS)}")
    predictions = (prediction for prediction in predictions if prediction.error is None)
    if form == "csv":
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["file", "rank", "label", "class", "name", "probability"])
        for prediction in predictions:
            for rank, guess in enumerate(prediction.top, 1):
                writer.writerow([prediction.file, rank, *guess[:3], f"{guess.probability:.6g}"])
    elif form == "json":
        separator = "[\n"
        for prediction in predictions:
            top = [dict(zip(("label", "class", "name", "probability"), guess, strict=True)) for guess in prediction.top]
            file.write(separator + json.dumps({"file": prediction.file, "top": top}))
            separator = ",\n"
        file.write("[]\n" if separator == "[\n" else "\n]\n")
    else:
        for prediction in predictions:
            file.write(f"{prediction.file}\n")
            for guess in prediction.top:
                name = guess.name if guess.name == guess.class_name else f"{guess.name} ({guess.class_name})"
                file.write(f"  {100 * guess.probability:6.2f} %  {name}\n")
