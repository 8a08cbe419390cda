"""`flatten-jax segment`: a run's segmenter, pictures in, coloured ones and ids out."""

import json

import numpy as np
import pytest
from PIL import Image

import flatten_jax
from flatten_jax.cli.main import main
from flatten_jax.segmentation import show
from flatten_jax.segmentation.masks import IGNORED
from flatten_jax.trained.load import load_trained
from flatten_jax.trained.predict import Predictor
from flatten_jax.training import checkpoint
from tests.segmentation.test_model import PVT, drawn, equal

NAMES = ["sky", "sea", "sand"]
SECTION = {"head": "semfpn", "channels": 8, "resize": [32, 128], "eval": "whole", "stride": 21, "multiple": 32}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """What training leaves behind, as far as it is looked at."""
    folder = tmp_path_factory.mktemp("run")
    options = {"image_size": [32, 32], "num_classes": 3, **PVT}
    model = flatten_jax.create_segmenter("flatten_pvt_t", "semfpn", channels=8, **options)
    checkpoint.save_weights(folder, drawn(model))
    config = {"model": {"name": "flatten_pvt_t", "attn_type": None, **options}, "segmentation": SECTION}
    config["data"] = {"name": "folder", "folder": "beach", "mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25]}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "classes.json").write_text(json.dumps(NAMES))
    return folder


@pytest.fixture
def pictures(tmp_path):
    rng = np.random.default_rng(0)
    folder = tmp_path / "pictures"
    for name, size in (("a/one.jpg", (40, 44)), ("b/one.png", (33, 31))):
        (folder / name).parent.mkdir(parents=True)
        Image.fromarray(rng.integers(0, 256, (*size, 3), np.uint8)).save(folder / name)
    return folder


def test_a_run_of_a_segmenter_is_opened(run):
    trained = load_trained(run)
    assert (trained.model.head, trained.model.channels, trained.class_names) == ("semfpn", 8, tuple(NAMES))
    assert (trained.segmentation["resize"], trained.mean) == ([32, 128], (0.5, 0.5, 0.5))
    assert equal(trained.variables, drawn(trained.model))
    assert equal(flatten_jax.load_weights(run, trained.model), trained.variables)
    with pytest.raises(ValueError, match="flatten-jax segment shows them"):
        Predictor(trained.model, trained.variables)


def test_pictures_are_coloured_and_nothing_is_replaced(run, pictures, tmp_path, capsys):
    arguments = ["segment", str(pictures), "--from", str(run), "--output", str(tmp_path / "out")]
    main(arguments)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 and all(any(name in line for name in NAMES) for line in lines)
    for name, size in (("a_one", (40, 44)), ("b_one", (33, 31))):
        ids = np.asarray(Image.open(tmp_path / "out" / f"{name}_ids.png"))
        assert (ids.shape, ids.dtype, ids.max() < 3) == (size, np.uint8, True)
        assert Image.open(tmp_path / "out" / f"{name}.png").size[1] > size[0]
    with pytest.raises(SystemExit, match=r"a_one.png, .*exist already: choose another --output, or --overwrite"):
        main(arguments)
    with pytest.raises(SystemExit, match="is a picture that was given"):
        main(["segment", str(pictures / "b/one.png"), "--from", str(run), "--output", str(pictures / "b")])


def test_what_is_no_segmenter_is_refused(tmp_path, pictures):
    model = dict(image_size=[32, 32], num_classes=3, **PVT)
    flatten_jax.save_weights(
        tmp_path / "pvt.safetensors", drawn(flatten_jax.create_model("flatten_pvt_t", **model)), "flatten_pvt_t", model
    )
    with pytest.raises(SystemExit, match="is no segmenter, but a PVT for whole pictures: `flatten-jax predict`"):
        main(["segment", str(pictures), "--from", str(tmp_path / "pvt.safetensors")])


def test_colours_and_shares():
    colours = show.colours(150)
    assert len(np.unique(colours, axis=0)) == 150
    assert np.array_equal(show.colours(7), colours[:7])
    ids = np.array([[0, 2, 2], [2, IGNORED, 0]], np.uint8)
    assert show.shares(ids) == [(2, 0.6), (0, 0.4)]
    coloured = show.colour_map(ids, 3)
    assert np.array_equal(coloured[0, 1], colours[2]) and not coloured[1, 1].any()
    picture = np.full((2, 3, 3), 100, np.uint8)
    page = np.asarray(show.panel(picture, ids, NAMES))
    scale = 107  # a picture is enlarged to 320 pixels at least
    assert page.shape[0] > 2 * scale and page.shape[1] >= 3 * 3 * scale
    assert np.array_equal(page[0, 0], picture[0, 0])
    assert np.array_equal(page[0, 3 * scale + 8], colours[0])
    assert np.array_equal(page[scale, 2 * (3 * scale + 8) + scale], picture[0, 0])  # IGNORED: nothing is over it
