"""Predictions: the pixels of the evaluation, names of classes, pictures in any state, and what is written."""

import csv
import io
import json
import os
import sys

import jax
import numpy as np
import pytest
from PIL import Image

from flatten_jax.cli.main import main
from flatten_jax.data import imagenet
from flatten_jax.models.images import normalize
from flatten_jax.trained import load as trained
from flatten_jax.trained.predict import Guess, Prediction, Predictor, find_pictures, report, write_predictions
from flatten_jax.training import agreement, setup

from ..runs import write_run
from ..training.conftest import tiny

NAMES = ("ant", "bee")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """A picture folder with both splits, val with five files: RGB, gray, with alpha, of several sizes and formats."""
    root = tmp_path_factory.mktemp("pictures")
    kinds = [
        ("a.jpg", "RGB", (20, 31)),
        ("b.png", "L", (40, 24)),
        ("c.png", "RGBA", (16, 16)),
        ("d.webp", "RGB", (9, 50)),
    ]
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        for label in NAMES:
            (root / split / label).mkdir(parents=True)
            for name, mode, size in kinds:
                pixels = rng.integers(0, 256, (*size, 3), np.uint8)
                Image.fromarray(pixels).convert(mode).save(root / split / label / name)
    return root


@pytest.fixture(scope="module")
def run(pictures, tmp_path_factory):
    """(folder of a run on the pictures, its config, its model, its parameters)."""
    folder = tmp_path_factory.mktemp("run")
    config, model, params = write_run(folder, NAMES, {7: None})
    config.data.update(name="folder", folder=str(pictures), workers=0)
    return folder, config, model, params[7]


@pytest.fixture(scope="module")
def predictor(run):
    return Predictor.load(run[0])


def test_a_run_predicts_from_the_pixels_that_its_evaluation_sees(run, pictures, predictor):
    _, config, model, params = run
    batch = next(setup.prepare(config).eval_batches())
    logits = jax.jit(model.apply)({"params": params}, normalize(np.asarray(batch["image"])))
    expected = np.asarray(jax.nn.softmax(logits))[np.asarray(batch["mask"])]
    predictions = list(predictor(find_pictures([pictures / "val"]), batch_size=3))
    assert len(predictions) == len(expected) == 8
    for prediction, row in zip(predictions, expected, strict=True):
        assert sorted(guess.name for guess in prediction.top) == list(NAMES)
        for guess in prediction.top:
            assert NAMES[guess.label] == guess.class_name
            assert guess.probability == pytest.approx(row[guess.label], abs=1e-5)
        assert prediction.top[0].probability >= prediction.top[1].probability


def test_what_a_run_says_of_its_pictures_is_what_its_predictions_do(run, pictures):
    _, config, *_ = run
    with config.unlocked():
        config = config.copy_and_resolve_references()
    config.data.update(mean=(0.5,) * 3, std=(0.25,) * 3)
    config.eval.resize = "short"
    prepared = setup.prepare(config)
    assert (prepared.task.mean, prepared.task.std) == ((0.5,) * 3, (0.25,) * 3)
    batch = next(prepared.eval_batches())
    short, squashed = (np.asarray(next(setup.prepare(c).eval_batches())["image"]) for c in (config, run[1]))
    np.testing.assert_array_equal(short, batch["image"])
    assert (short != squashed).any()


def test_batches_have_one_shape_and_pictures_keep_their_order(predictor, monkeypatch):
    """Each picture is of one shade, which the stand-in for the model answers with."""
    shapes = []

    def answer(variables, images):
        shapes.append(images.shape)
        assert images.sharding.device_set == set(jax.local_devices())
        shade = np.clip(images[:, 0, 0, :1] / 255, 1e-6, 1)
        return np.log(np.concatenate([shade, 1 - shade], 1))

    monkeypatch.setattr(predictor, "_log_probabilities", answer)
    shades = np.linspace(40, 220, 20).astype(np.uint8).tolist()
    arrays = [np.full((10, 12, 3), shade, np.uint8) for shade in shades]
    found = [dict((g.label, g.probability) for g in p.top)[0] for p in predictor(iter(arrays), batch_size=2)]
    assert found == pytest.approx([shade / 255 for shade in shades])
    assert jax.local_device_count() == 8 and shapes == [(8, 16, 16, 3)] * 3
    list(predictor(arrays[:1], batch_size=32))
    assert shapes[3:] == [(8, 16, 16, 3)]
    assert list(predictor([])) == []
    assert len(next(predictor(arrays, top=1)).top) == 1


def test_an_answer_that_is_not_a_number_is_an_error(predictor, monkeypatch):
    monkeypatch.setattr(predictor, "_log_probabilities", lambda variables, images: np.full((len(images), 2), np.nan))
    with pytest.raises(ValueError, match="answer to a picture is not a number"):
        list(predictor([np.zeros((4, 4, 3), np.uint8)]))


def test_bad_pictures_are_named_and_the_rest_goes_on(run, pictures, tmp_path, capsys):
    (tmp_path / "text.jpg").write_text("not a picture")
    (tmp_path / "cut.jpg").write_bytes((pictures / "val/ant/a.jpg").read_bytes()[:400])
    (tmp_path / "empty").mkdir()
    bad = [str(tmp_path / name) for name in ("text.jpg", "cut.jpg", "empty", "none.jpg")]
    good = str(pictures / "val/bee/b.png")
    with pytest.raises(SystemExit, match="4 of 5 pictures could not be read"):
        main(["predict", "--from", str(run[0]), *bad, good, "--format", "csv"])
    out, err = capsys.readouterr()
    for name, reason in zip(
        bad, ("not a picture", "cannot be decoded: ", "folder without pictures", "No such file"), strict=True
    ):
        assert any(line.startswith(f"{name}: ") and reason in line for line in err.splitlines()), (name, err)
    assert {row["file"] for row in csv.DictReader(io.StringIO(out))} == {good}


def test_answers_go_into_a_file_that_is_not_overwritten(run, pictures, tmp_path, capsys):
    arguments = ["predict", "--from", str(run[0]), str(pictures / "val"), "--format", "json", "--top", "1"]
    arguments += ["--output", str(tmp_path / "out.json")]
    main(arguments)
    answers = json.loads((tmp_path / "out.json").read_text())
    assert [answer["file"] for answer in answers] == find_pictures([pictures / "val"])
    assert {len(answer["top"]) for answer in answers} == {1}
    assert capsys.readouterr().out == ""
    with pytest.raises(SystemExit, match="exists already"):
        main(arguments)
    main([*arguments, "--overwrite"])


def test_weights_must_be_named_or_random_ones_be_asked_for(capsys):
    for arguments in (["x.jpg"], ["x.jpg", "--random"], ["x.jpg", "--random", "--from", "run"]):
        with pytest.raises(SystemExit, match="predict needs weights"):
            main(["predict", *arguments])


def test_random_weights_say_so_and_know_imagenet():
    found = trained.random_weights("flatten_deit_t", image_size=16, depth=1, embed_dim=8, num_heads=2)
    assert "RANDOM weights" in found.said
    predictor = Predictor(found.model, found.variables, found.class_names)
    guess = next(predictor([np.zeros((4, 4, 3), np.uint8)], top=1)).top[0]
    assert guess.class_name == list(imagenet.class_names())[guess.label]
    assert guess.name == imagenet.class_names()[guess.class_name]


def test_a_run_of_other_classes_is_refused(run):
    assert trained.load_trained(run[0] / "checkpoints" / "7").class_names == NAMES
    config = tiny()
    config.model.num_classes = 2
    with pytest.raises(ValueError, match=r"other classes .*only there \['bee'\], only now \['wasp'\]"):
        agreement.claim(run[0], config, ("ant", "wasp"))
    assert json.loads((run[0] / "classes.json").read_text()) == list(NAMES)
    with pytest.raises(ValueError, match="names 2 classes, and the model has 3"):
        trained._named(trained.Trained(setup.create_model("flatten_deit_t", num_classes=3), {}, NAMES), "it")


def test_pictures_are_found_in_folders_by_patterns_and_once(tmp_path):
    names = ["b.png", "a.JPG", "notes.txt", ".hidden.jpg", "sub/deep/c.webp", ".git/d.png", "odd[1].png", "odd1.png"]
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    below = [str(tmp_path / name) for name in ("a.JPG", "b.png", "odd1.png", "odd[1].png", "sub/deep/c.webp")]
    assert find_pictures([tmp_path]) == below
    assert find_pictures([f"{tmp_path}/**/*.webp", tmp_path / "b.png"]) == [below[4], below[1]]
    assert find_pictures([tmp_path / "b.png", tmp_path, f"{tmp_path}/*.png"]) == [below[1], below[0], *below[2:]]
    assert find_pictures([tmp_path / "odd[1].png"]) == [below[3]]
    assert find_pictures(["nothing*.jpg"]) == ["nothing*.jpg"]


PREDICTIONS = [
    Prediction("a, b.jpg", (Guess(134, "n02012849", "crane", 0.75), Guess(1, "bee", "bee", 0.125))),
    Prediction("bad.jpg", (), "not a picture"),
]


def test_formats():
    written = {}
    for form in ("text", "csv", "json"):
        file = io.StringIO()
        write_predictions(PREDICTIONS, file, form)
        written[form] = file.getvalue()
    assert written["text"] == "a, b.jpg\n   75.00 %  crane (n02012849)\n   12.50 %  bee\n"
    assert written["csv"].splitlines() == [
        "file,rank,label,class,name,probability",
        '"a, b.jpg",1,134,n02012849,crane,0.75',
        '"a, b.jpg",2,1,bee,bee,0.125',
    ]
    best = {"label": 134, "class": "n02012849", "name": "crane", "probability": 0.75}
    assert json.loads(written["json"])[0]["top"][0] == best
    assert len(json.loads(written["json"])) == 1
    file = io.StringIO()
    write_predictions([], file, "json")
    assert json.loads(file.getvalue()) == []


@pytest.mark.parametrize(("count", "shown"), [(5, False), (200, True)])
def test_a_bar_shows_the_progress_of_many(count, shown, tmp_path, monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setattr(sys, "stderr", Terminal())
    assert report(PREDICTIONS[1:] * count, count, "csv", tmp_path / "out.csv") == count
    assert (f"{count}/{count}" in sys.stderr.getvalue()) == shown
    assert "bad.jpg: not a picture" in sys.stderr.getvalue()


def test_linked_folders_are_looked_into_and_circles_are_left(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a/x.jpg").write_bytes(b"")
    (tmp_path / "a/._x.jpg").write_bytes(b"")
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures/linked").symlink_to(tmp_path / "a")
    (tmp_path / "a/circle").symlink_to(tmp_path / "pictures")
    assert find_pictures([tmp_path / "pictures"]) == [str(tmp_path / "pictures/linked/x.jpg")]


@pytest.mark.parametrize("form", ["csv", "json", "text"])
def test_names_in_other_encodings_are_printed_as_they_are(form, tmp_path, monkeypatch):
    raw = os.fsencode(tmp_path) + b"/caf\xe9 \xe6\x97\xa5.jpg"
    prediction = Prediction(os.fsdecode(raw), (Guess(0, "ant", "ant", 1.0),))
    printed = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", printed)
    assert report([prediction], 1, form) == 0
    printed.flush()
    written = printed.buffer.getvalue()
    assert raw in written or json.loads(written)[0]["file"] == os.fsdecode(raw)
