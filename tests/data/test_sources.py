import hashlib
import io
import json
import os
import pickle
import shutil
import subprocess
import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds

from flatten_jax.data import folder as folders
from flatten_jax.data.folder import EVALUATION_FOLDERS
from flatten_jax.data.sources import open_source


class Pictures(tfds.core.GeneratorBasedBuilder):
    """A set as `imagenet2012` is one: file names, encoded pictures, train and validation. Needs no TensorFlow."""

    VERSION = tfds.core.Version("1.0.0")
    FILES: list[bytes]

    def _info(self):
        features = {
            "image": tfds.features.Image(),
            "label": tfds.features.ClassLabel(names=["ant", "bee"]),
            "file_name": tfds.features.Text(),
        }
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(range(6)), "validation": self._generate_examples(range(6, 10))}

    def _generate_examples(self, indices):
        for i in indices:
            yield i, {"image": io.BytesIO(self.FILES[i]), "label": i % 2, "file_name": f"n{i}.JPEG"}


@pytest.fixture
def pictures_dir(tmp_path, picture, monkeypatch):
    monkeypatch.setattr(Pictures, "FILES", [picture(i) for i in range(10)], raising=False)
    tfds.disable_progress_bar()
    Pictures(data_dir=tmp_path, file_format="array_record").download_and_prepare()
    return tmp_path


def test_tfds_gives_undecoded_files_with_their_names(pictures_dir):
    source = open_source("pictures", "train", data_dir=pictures_dir)
    assert source.class_names == ("ant", "bee")
    assert len(source) == 6
    for example in map(source.__getitem__, range(6)):
        i = int(example.name.removeprefix("n").removesuffix(".JPEG"))
        assert example.image == Pictures.FILES[i]
        assert example.label == i % 2


def test_tfds_splits(pictures_dir):
    names = {open_source("pictures", split, data_dir=pictures_dir)[0].name for split in ("eval", "validation")}
    assert names <= {f"n{i}.JPEG" for i in range(6, 10)} and len(names) == 1
    assert len(open_source("pictures", "train[:50%]", data_dir=pictures_dir)) == 3
    with pytest.raises(ValueError, match=r"no split='test'; it has \['train', 'validation'\]"):
        open_source("pictures", "test", data_dir=pictures_dir)


def test_tfds_source_travels_to_another_process_after_use(pictures_dir):
    source = open_source("pictures", "train", data_dir=pictures_dir)
    first = source[0]
    copy = pickle.loads(pickle.dumps(source))
    assert copy[0] == first
    assert len(pickle.dumps(source)) < 1000


def test_the_data_folder_comes_from_the_environment(pictures_dir, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(pictures_dir))
    assert len(open_source("pictures", "train")) == 6


def remove(folder):
    shutil.rmtree(folder)


def empty(folder):
    remove(folder)
    folder.mkdir()


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda root: remove(root), "{root} does not exist"),
        (lambda root: remove(root / "pictures"), "{root}/pictures does not exist"),
        (lambda root: remove(root / "pictures/1.0.0"), "{root}/pictures is empty"),
        (
            lambda root: (root / "pictures/1.0.0").rename(root / "pictures/incomplete.AB12CD_1.0.0"),
            "{root}/pictures holds only the remains of an interrupted build",
        ),
        (lambda root: (root / "pictures/1.0.0/features.json").unlink(), "description cannot be read"),
        (lambda root: (root / "pictures/1.0.0/dataset_info.json").write_text('{"name"'), "description cannot be read"),
    ],
)
def test_missing_tfds_data_names_the_path_and_the_command(pictures_dir, damage, said):
    damage(pictures_dir)
    with pytest.raises(FileNotFoundError) as error:
        open_source("pictures", "train", data_dir=pictures_dir)
    assert said.format(root=pictures_dir) in str(error.value)
    assert f"flatten-jax prepare pictures --data_dir {pictures_dir}" in str(error.value)


def test_missing_imagenet_names_the_folder_of_the_tars(tmp_path):
    with pytest.raises(FileNotFoundError) as error:
        open_source("imagenet2012", "train", data_dir=tmp_path)
    command = f"flatten-jax prepare imagenet2012 --manual_dir DIR_WITH_THE_TARS --data_dir {tmp_path}"
    assert str(error.value).endswith(command)


@pytest.mark.parametrize("damage", ["missing", "empty", "cut", "of another build"])
def test_half_built_tfds_data_is_found_on_opening(pictures_dir, damage):
    (shard,) = pictures_dir.glob("pictures/1.0.0/*train*record*")
    if damage == "missing":
        shard.unlink()
    elif damage == "of another build":
        (other,) = pictures_dir.glob("pictures/1.0.0/*validation*record*")
        shard.write_bytes(other.read_bytes())
    else:
        shard.write_bytes(b"" if damage == "empty" else shard.read_bytes()[:-100])
    with pytest.raises(FileNotFoundError, match=r"1 of 1 files of its split train .*Delete that folder and prepare"):
        open_source("pictures", "train", data_dir=pictures_dir)
    assert len(open_source("pictures", "validation", data_dir=pictures_dir)) == 4


def test_tfrecord_is_refused(pictures_dir):
    path = pictures_dir / "pictures/1.0.0/dataset_info.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"fileFormat": "tfrecord"}))
    with pytest.raises(FileNotFoundError, match=r"built as tfrecord.*array_record is needed.*flatten-jax prepare"):
        open_source("pictures", "train", data_dir=pictures_dir)


def test_an_unreadable_record_names_its_set(pictures_dir):
    source = open_source("pictures", "train", data_dir=pictures_dir)
    (shard,) = pictures_dir.glob("pictures/1.0.0/*train*record*")
    shard.write_bytes(bytes(shard.stat().st_size))
    with pytest.raises(Exception) as error:
        source[3]
    assert any("example 3 of pictures/1.0.0/train" in note for note in error.value.__notes__)


def test_digits_are_fixed_and_built_once(tmp_path, capfd, monkeypatch):
    train, test = (open_source("digits", split, data_dir=tmp_path) for split in ("train", "eval"))
    assert capfd.readouterr().out == (
        f"built the digits data set (1,437 training and 360 test scans) in {tmp_path}/digits/1.0.0\n"
    )
    assert (len(train), len(test)) == (1437, 360)
    assert train.class_names == tuple("0123456789")
    assert (train[0].image.shape, train[0].image.dtype) == ((8, 8, 3), np.uint8)
    digests = {}
    pictures = []
    for split, source in (("train", train), ("test", test)):
        examples = [source[i] for i in range(len(source))]
        pictures += [(example.image[..., 0].tobytes(), example.label) for example in examples]
        # TFDS keeps the order of the keys' hashes: the labels' order is fixed as well as their number.
        digests[split] = hashlib.sha256(bytes(example.label for example in examples)).hexdigest()[:16]
    assert digests == {"train": "dc21d09e4ba986b3", "test": "86768a6141293de0"}

    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    scaled = np.rint(images * 255 / 16).astype(np.uint8)
    assert sorted(pictures) == sorted((row.tobytes(), int(label)) for row, label in zip(scaled, labels, strict=True))

    monkeypatch.setattr("flatten_jax.data.digits.Digits", None)
    open_source("digits", "train", data_dir=tmp_path)
    assert capfd.readouterr().out == ""


def test_two_processes_build_the_digits_at_the_same_time(tmp_path):
    program = (
        "import sys; from flatten_jax.data.sources import open_source\n"
        f"sys.stdin.read(); source = open_source('digits', 'test', data_dir={str(tmp_path)!r})\n"
        "print(sum(source[i].label for i in range(360)))"
    )
    pipe = subprocess.PIPE
    both = [subprocess.Popen([sys.executable, "-c", program], stdin=pipe, stdout=pipe, text=True) for _ in range(2)]
    for process in both:
        process.stdin.close()
    output = [process.stdout.read().splitlines() for process in both]
    assert [process.wait() for process in both] == [0, 0]
    assert output[0][-1] == output[1][-1]
    assert sum("built the digits" in line for lines in output for line in lines) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["digits"]


def test_folder_is_sorted_by_class_and_name(image_folder):
    source = open_source("folder", "train", folder=image_folder)
    assert source.class_names == ("ant", "bee")
    examples = [source[i] for i in range(len(source))]
    assert [example.name.removeprefix(f"{image_folder}/train/") for example in examples] == [
        *("ant/a.JPEG", "ant/b.jpg", "ant/c.png", "ant/d.webp"),
        *("bee/e.bmp", "bee/f.jpeg", "bee/g.PNG"),
    ]
    assert [example.label for example in examples] == [0, 0, 0, 0, 1, 1, 1]
    assert examples[5].image == (image_folder / "train/bee/f.jpeg").read_bytes()
    assert pickle.loads(pickle.dumps(source))[5] == examples[5]


@pytest.mark.parametrize("name", EVALUATION_FOLDERS)
def test_the_evaluation_folder_has_many_names(image_folder, name):
    if name != "test":
        (image_folder / "test").rename(image_folder / name)
    for split in ("eval", "val", "test"):
        assert open_source("folder", split, folder=image_folder)[3].name == f"{image_folder}/{name}/bee/k.jpg"


def test_other_files_are_not_pictures(image_folder):
    (image_folder / "train/.cache").mkdir()
    (image_folder / "train/README.txt").write_text("")
    (image_folder / "train/ant/Thumbs.db").write_text("")
    assert len(open_source("folder", "train", folder=image_folder)) == 7


def test_what_is_left_out_of_a_folder_is_counted_and_said_once(image_folder):
    """macOS writes `._x.jpg` beside `x.jpg` on foreign disks."""
    for name in ("._a.JPEG", ".hidden.jpg", "notes.txt", "film.GIF", "noending"):
        (image_folder / "train/ant" / name).write_bytes(b"")
    (image_folder / "train/ant/more.jpg").mkdir()
    (image_folder / "train/bee/gone.jpg").symlink_to("nowhere.jpg")
    source = open_source("folder", "train", folder=image_folder)
    assert len(source) == 7
    assert source.note == (
        f"{image_folder}/train: left out as no pictures: 1 *.gif, 1 *.txt, 1 folder, 2 hidden, 1 link to nothing, "
        "1 without an ending"
    )
    assert open_source("folder", "eval", folder=image_folder).note == ""
    shutil.rmtree(image_folder / "test")
    assert "left out" not in open_source("folder", "eval", folder=image_folder).note, "training pictures, held out"


def test_links_are_followed_and_a_class_that_leads_nowhere_is_refused(image_folder):
    plain = open_source("folder", "train", folder=image_folder)
    (image_folder / "train/bee").rename(image_folder / "elsewhere")
    (image_folder / "train/bee").symlink_to(image_folder / "elsewhere")
    (image_folder / "train/ant/a.JPEG").rename(image_folder / "a")
    (image_folder / "train/ant/a.JPEG").symlink_to(image_folder / "a")
    linked = open_source("folder", "train", folder=image_folder)
    assert [linked[i] for i in range(7)] == [plain[i] for i in range(7)]
    (image_folder / "elsewhere").rename(image_folder / "moved")
    with pytest.raises(
        FileNotFoundError, match=rf"train/bee is a link to {image_folder}/elsewhere, which is not there"
    ):
        open_source("folder", "train", folder=image_folder)


def test_names_in_other_encodings_are_read(image_folder):
    os.rename(os.fsencode(image_folder / "train/ant/b.jpg"), os.fsencode(image_folder / "train/ant") + b"/caf\xe9.jpg")
    names = [open_source("folder", "train", folder=image_folder)[i].name for i in range(4)]
    assert os.fsencode(names[2]).endswith(b"train/ant/caf\xe9.jpg")


def test_a_long_scan_shows_a_bar(image_folder, monkeypatch):
    bars = []

    def bar(classes, description, **options):
        bars.append((tuple(classes), description, options))
        return classes

    monkeypatch.setattr(folders, "tqdm", bar)
    open_source("folder", "train", folder=image_folder)
    options = {"unit": " classes", "delay": folders.SLOW_SECONDS, "disable": None}  # None: not without a terminal
    assert bars == [(("ant", "bee"), f"looking through {image_folder}/train", options)]


@pytest.mark.parametrize(
    ("damage", "split", "error", "said"),
    [
        (lambda root: remove(root), "train", FileNotFoundError, "images does not exist"),
        (lambda root: remove(root / "train"), "train", FileNotFoundError, "images/train does not exist"),
        (lambda root: remove(root / "test"), "val", FileNotFoundError, r"no folder for split='val', but \['train'\]"),
        (lambda root: None, "vall", FileNotFoundError, r"no folder for split='vall', but \['test', 'train'\]"),
        (lambda root: None, "trian", FileNotFoundError, "no folder for split='trian'"),
        (lambda root: remove(root / "test/bee"), "train", ValueError, r"differ: only in train: \['bee'\]"),
        (lambda root: (root / "test/cat").mkdir(), "eval", ValueError, r"only in test: \['cat'\]"),
        (lambda root: empty(root / "train/bee"), "train", ValueError, "train/bee holds no pictures"),
    ],
)
def test_a_folder_of_another_layout_is_refused(image_folder, damage, split, error, said):
    damage(image_folder)
    with pytest.raises(error, match=said):
        open_source("folder", split, folder=image_folder)


@pytest.mark.parametrize("wrapped", [True, False])
def test_where_there_is_nothing_to_evaluate_on_a_part_of_every_class_is_held_out(image_folder, picture, wrapped):
    """Of PATH/train/<class>, and of PATH/<class>."""
    remove(image_folder / "test")
    for i in range(26):
        (image_folder / f"train/ant/{i}.jpg").write_bytes(picture(i))
    whole = {
        source[i].name
        for source in [open_source("folder", "train", folder=image_folder, hold_out=False)]
        for i in range(33)
    }
    root = image_folder if wrapped else image_folder / "train"
    train, held_out = (open_source("folder", split, folder=root) for split in ("train", "eval"))
    assert train.class_names == held_out.class_names == ("ant", "bee")
    names = [{source[i].name for i in range(len(source))} for source in (train, held_out)]
    assert (names[0] | names[1], names[0] & names[1]) == (whole, set())
    assert [held_out[i].label for i in range(len(held_out))] == [0, 0, 0, 1]
    assert held_out.note == f"{root} has no val/ or test/: 4 of 33 pictures are held out of training"
    again = open_source("folder", "eval", folder=root)
    assert [again[i].name for i in range(4)] == [held_out[i].name for i in range(4)]
    (root / "train" if wrapped else root).joinpath("bee", "new.jpg").write_bytes(picture(99))
    again = open_source("folder", "eval", folder=root)
    assert names[1] >= {again[i].name for i in range(3)}, "a new picture does not move the others"


def test_one_picture_a_class_cannot_be_shared(tmp_path, picture):
    (tmp_path / "ant").mkdir()
    (tmp_path / "ant" / "a.jpg").write_bytes(picture(0))
    assert len(open_source("folder", "train", folder=tmp_path)) == 1
    with pytest.raises(ValueError, match="one picture of each class, and none to evaluate on"):
        open_source("folder", "eval", folder=tmp_path)


def test_a_bucket_is_refused_before_anything_waits_for_it():
    with pytest.raises(ValueError, match="gs://bucket/data: data are not read from a bucket: have them"):
        open_source("imagenet2012", "train", data_dir="gs://bucket/data")


def test_a_name_that_is_nearly_one_is_asked_about(tmp_path):
    for name, meant in (("imagenet", "imagenet2012"), ("Folder", "folder")):
        with pytest.raises(FileNotFoundError, match=f"did you mean '{meant}'"):
            open_source(name, "train", data_dir=tmp_path)


def test_pictures_straight_in_train_are_refused(tmp_path):
    (tmp_path / "train").mkdir()
    with pytest.raises(ValueError, match="train is empty; expected"):
        open_source("folder", "train", folder=tmp_path)
    (tmp_path / "train/x.jpg").write_bytes(b"")
    with pytest.raises(ValueError, match=r"has files such as x\.jpg but no class folders; expected .*train/<class>"):
        open_source("folder", "train", folder=tmp_path)


def test_synthetic_pictures_are_fixed_and_can_be_learnt():
    train, test = (
        open_source("synthetic", split, image_size=(8, 12), num_classes=4, examples=40) for split in ("train", "eval")
    )
    assert train[5].image.shape == (8, 12, 3) and train[5].image.dtype == np.uint8
    np.testing.assert_array_equal(train[5].image, pickle.loads(pickle.dumps(train))[5].image)
    assert not np.array_equal(train[5].image, test[5].image)
    assert len(train.class_names) == 4
    colours = {s: np.array([s[i].image.mean((0, 1)) for i in range(40)]) for s in (train, test)}
    centres = np.array([colours[train][label::4].mean(0) for label in range(4)])
    nearest = np.linalg.norm(colours[test][:, None] - centres, axis=-1).argmin(1)
    assert (nearest == [test[i].label for i in range(40)]).all()


def test_options_of_other_sources_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"folder='/x' is not an option of the data source 'digits'"):
        open_source("digits", "train", folder="/x", data_dir=tmp_path)
    with pytest.raises(ValueError, match="needs folder=PATH"):
        open_source("folder", "train")


def test_importing_sources_is_light():
    program = (
        "import sys, flatten_jax.data.sources; print({'tensorflow_datasets', 'grain', 'sklearn'} & {*sys.modules})"
    )
    assert subprocess.check_output([sys.executable, "-c", program], text=True) == "set()\n"
