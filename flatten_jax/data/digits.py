"""The handwritten digits that ship inside scikit-learn, as a TFDS data set.

1,797 scans of 8 x 8 pixels from the test part of the UCI set "Optical Recognition of Handwritten Digits". The split is
ours and fixed: the first 360 places of `numpy.random.RandomState(0).permutation(1797)` are the test scans, the other
1,437 the training scans. NumPy guarantees that RandomState's numbers never change.
"""

import contextlib
import io
import os
import shutil
import tempfile
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds

VERSION = "1.0.0"
TEST_EXAMPLES = 360


class Digits(tfds.core.GeneratorBasedBuilder):
    """Writes the digits. The pixels are a tensor and not a PNG, which TFDS could only write with TensorFlow."""

    VERSION = tfds.core.Version(VERSION)

    def _info(self) -> tfds.core.DatasetInfo:
        features = {
            "image": tfds.features.Tensor(shape=(8, 8, 1), dtype=np.uint8),
            "label": tfds.features.ClassLabel(names=[str(digit) for digit in range(10)]),
        }
        return tfds.core.DatasetInfo(
            builder=self,
            description="Handwritten digits, 8 x 8 pixels, grey values 0 to 255.",
            features=tfds.features.FeaturesDict(features),
            homepage="https://archive.ics.uci.edu/dataset/80",
        )

    def _split_generators(self, dl_manager):
        order = np.random.RandomState(0).permutation(1797)
        train, test = order[TEST_EXAMPLES:], order[:TEST_EXAMPLES]
        return {"train": self._generate_examples(train), "test": self._generate_examples(test)}

    def _generate_examples(self, indices):
        from sklearn.datasets import load_digits  # slow to import, needed once

        digits = load_digits()
        pixels = np.rint(digits.images * (255 / 16)).astype(np.uint8)[..., None]
        for index in map(int, indices):
            yield index, {"image": pixels[index], "label": int(digits.target[index])}


def build_once(root: Path) -> Path:
    """Writes the digits below `root` unless they are there, and says so in one line.

    Processes may do this at the same time: each builds in a folder of its own, and the first one to finish moves it
    into place.

    Returns:
        the folder of the data set.
    """
    target = root / "digits" / VERSION
    if target.exists():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=".digits-", dir=root))
    try:
        builder = Digits(data_dir=scratch, file_format="array_record")
        nowhere = io.StringIO()  # TFDS prints and draws bars, for two seconds of work
        with contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
            builder.download_and_prepare()
        try:
            os.rename(builder.data_dir, target)  # fails when another process has put its folder there
        except OSError:
            if not target.exists():
                raise
        else:
            print(f"built the digits data set (1,437 training and 360 test scans) in {target}", flush=True)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return target
