"""Sets on disk: the same however they are made, whole or refused; and the sources that read them."""

import numpy as np
import pytest
from PIL import Image

from flatten_jax.cli.main import main
from flatten_jax.data import sources
from flatten_jax.lra import listops, made
from flatten_jax.lra.made import Made, write
from flatten_jax.lra.sources import ImageSource, Tokens

SMALL = Made("listops", 50, seed=3, part=20)


@pytest.fixture
def short(monkeypatch):
    """Sequences of some dozen tokens."""
    monkeypatch.setattr(listops, "SHORTEST", 5)


def content(folder):
    return [path.read_bytes() for path in sorted(folder.glob("part-*.npy"))]


@pytest.mark.slow
def test_the_number_of_processes_does_not_matter(tmp_path):
    wanted = SMALL._replace(count=6, part=3)
    for workers in (1, 2):
        assert list(write(wanted, tmp_path / str(workers), workers)) == [0, 3, 6]
    assert content(tmp_path / "1") == content(tmp_path / "2") and len(content(tmp_path / "1")) == 2


def test_an_interrupted_set_goes_on(tmp_path, short):
    steps = write(SMALL, tmp_path / "set", workers=1)
    assert [next(steps), next(steps)] == [0, 20]
    steps.close()
    with pytest.raises(FileNotFoundError, match=r"2 of 3 parts .*flatten-jax lra listops --count 50 --seed 3 --out"):
        sources.open_source("listops", "train", folder=tmp_path / "set")
    before = (tmp_path / "set" / "part-00000.npy").stat().st_mtime_ns
    assert list(write(SMALL, tmp_path / "set", workers=1)) == [20, 40, 50]
    assert (tmp_path / "set" / "part-00000.npy").stat().st_mtime_ns == before
    list(write(SMALL, tmp_path / "other", workers=1))
    assert content(tmp_path / "set") == content(tmp_path / "other")


def test_duplicates_are_drawn_anew(tmp_path, short, monkeypatch):
    plain = listops.sequence
    monkeypatch.setattr(listops, "sequence", lambda seed, index, draw=0: plain(seed, 0 if draw == 0 else index, draw))
    list(write(SMALL, tmp_path, workers=1))
    found = np.concatenate([np.load(path)["tokens"] for path in sorted(tmp_path.glob("part-*.npy"))])
    assert len({row.tobytes() for row in found}) == 50


def test_another_set_is_not_overwritten(tmp_path, short, capsys):
    list(write(SMALL, tmp_path, workers=1))
    with pytest.raises(SystemExit, match=r"holds another set \(count=50 there, 60 now; seed=3 there, 0 now; part=20"):
        main(["lra", "listops", "--count", "60", "--out", str(tmp_path), "--workers", "1"])
    (tmp_path / made.DESCRIPTION).unlink()
    with pytest.raises(SystemExit, match="is not empty, and holds no set that was made here"):
        main(["lra", "listops", "--count", "60", "--out", str(tmp_path), "--workers", "1"])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["pathfinder", "--size", "48"], "size=48 of Pathfinder must be one of 32, 64, 128"),
        (["pathfinder", "--difficulty", "hardest"], "difficulty='hardest' of Pathfinder must be one of"),
        (["listops", "--count", "0"], "count=0 and part=500 must be at least 1"),
        (["listops", "--workers", "0"], "workers=0 must be at least 1"),
    ],
)
def test_a_wrong_argument_is_one_line(tmp_path, arguments, said):
    with pytest.raises(SystemExit, match=said):
        main(["lra", *arguments, "--out", str(tmp_path / "set")])
    assert not (tmp_path / "set").exists()


def test_splits_are_apart_and_together_the_set(tmp_path, short, capsys):
    main(["lra", "listops", "--count", "100", "--out", str(tmp_path), "--workers", "1"])
    assert "100 examples of listops" in capsys.readouterr().out
    splits = [sources.open_source("listops", split, folder=tmp_path) for split in ("train", "eval", "test")]
    assert [len(split) for split in splits] == [96, 2, 2]
    seen = [split[i] for split in splits for i in range(len(split))]
    for index in (0, 96, 98):
        tokens, value = listops.sequence(0, index)
        np.testing.assert_array_equal(seen[index].image, tokens)
        assert seen[index].label == value
    with pytest.raises(ValueError, match="holds listops and not pathfinder"):
        sources.open_source("pathfinder", "train", folder=tmp_path)


def test_pathfinder_is_read_as_pictures(tmp_path):
    list(write(Made("pathfinder", 10, size=32, difficulty="easy"), tmp_path, workers=1))
    train = sources.open_source("pathfinder", "train", folder=tmp_path)
    memory = sources.open_source("pathfinder", "train", examples=10, image_size=32)
    assert (len(train), train.class_names, train[3].image.shape) == (8, ("apart", "connected"), (32, 32, 3))
    assert memory[0].image.shape == (32, 32, 3)
    tokens = Tokens((32, 32)).from_file(train[3].image, "x")
    np.testing.assert_array_equal(tokens, train[3].image[..., 0].reshape(-1))


class Fifty:
    """CIFAR-10's names and nothing else."""

    def __init__(self, folder, split, hold_out):
        self.class_names, self.split = tuple("abcdefghij"), split

    def __len__(self):
        return 50_000 if self.split == "train" else 10_000

    def __getitem__(self, index):
        return self.split, index


def test_cifar10_is_split_as_in_the_arena(monkeypatch):
    monkeypatch.setattr("flatten_jax.lra.sources.FolderSource", Fifty)
    train, validation, test = (ImageSource("x", split) for split in ("train", "validation", "test"))
    assert (len(train), len(validation), len(test)) == (45_000, 5_000, 10_000)
    seen = [{split[i] for i in range(len(split))} for split in (train, validation, test)]
    assert len(set.union(*seen)) == 60_000
    classes = np.bincount([index // 5000 for _, index in seen[1]])
    assert classes.min() > 420  # a mixture, and not the last class
    assert train.note == ""


def test_another_folder_than_cifar10_is_said(tmp_path):
    for name in ("train/a", "test/a"):
        (tmp_path / name).mkdir(parents=True)
        for i in range(20):
            Image.new("RGB", (32, 32), (i, 0, 0)).save(tmp_path / name / f"{i}.png")
    train = sources.open_source("lra_image", "train", folder=tmp_path)
    assert len(train) == 18 and "is not CIFAR-10: 20 pictures, not 50,000" in train.note


def test_tokens_are_grey_values_row_by_row():
    pixels = np.zeros((2, 3, 3), np.uint8)
    pixels[0, 1], pixels[1, 2] = (255, 0, 0), (10, 20, 30)
    assert Tokens((2, 3)).from_file(pixels, "x").tolist() == [0, 76, 0, 0, 0, 18]
    assert Tokens((2, 3)).shape == (6,)
    with pytest.raises(ValueError, match=r"2 x 3 pixels .* grid 4 x 4: set model.image_size=\(2, 3\)"):
        Tokens((4, 4)).from_file(pixels, "x")
    assert Tokens((1, 5)).from_file(np.array([3, 4], np.uint8), "x").tolist() == [3, 4, 0, 0, 0]
    with pytest.raises(ValueError, match="has 6 tokens, more than"):
        Tokens((1, 5)).from_file(np.ones(6, np.uint8), "x")


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("lra_image", {}, "needs folder=PATH, CIFAR-10"),
        ("listops", {"split": "val"}, "split='val' .* train, validation, test"),
        ("listops", {"examples": 3}, "leave none for validation"),
        ("lra_image", {"folder": "x", "examples": 5}, "examples=5 is not an option of the data source 'lra_image'"),
        ("pathfinder", {"folder": "/nowhere"}, "/nowhere holds no dataset.json: make a set with flatten-jax lra"),
    ],
)
def test_what_is_not_there_is_one_line(name, options, said):
    options = {"split": "eval", **options}
    with pytest.raises((ValueError, FileNotFoundError), match=said) as error:
        sources.open_source(name, **options)
    assert "\n" not in str(error.value)
