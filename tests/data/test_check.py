"""Pictures that cannot be decoded: found by `flatten-jax check-data`, and by a glance at the start of a run."""

import pytest

from flatten_jax.cli.main import main
from flatten_jax.data import check
from flatten_jax.data.sources import open_source


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


DAMAGE = {
    "cut": cut,
    "empty": lambda path: path.write_bytes(b""),
    "a page of the web": lambda path: path.write_bytes(b"<!DOCTYPE html><html>" * 99),
    "zeros": lambda path: path.write_bytes(bytes(5000)),
}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("name", ["a.JPEG", "c.png", "d.webp"])
def test_a_damaged_picture_is_seen_by_its_ends_and_by_decoding(image_folder, damage, name):
    source = open_source("folder", "train", folder=image_folder)
    check.glance(source)
    assert check.check_pictures(source) == []
    DAMAGE[damage](image_folder / "train/ant" / name)
    with pytest.raises(ValueError, match=rf"(?s)^1 of 7 pictures cannot be read:.*train/ant/{name}.*check-data"):
        check.glance(source)
    (fault,) = check.check_pictures(source)
    assert f"train/ant/{name}' cannot be decoded" in fault


def test_what_only_looks_damaged_is_decoded_and_passes(image_folder):
    """A picture under another ending, and one with something behind its end."""
    (image_folder / "train/ant/a.JPEG").write_bytes((image_folder / "train/ant/c.png").read_bytes())
    path = image_folder / "train/ant/b.jpg"
    path.write_bytes(path.read_bytes() + bytes(3 * check.TAIL))
    check.glance(open_source("folder", "train", folder=image_folder))


def test_a_picture_that_went_away_is_named(image_folder):
    source = open_source("folder", "train", folder=image_folder)
    (image_folder / "train/bee/f.jpeg").unlink()
    with pytest.raises(ValueError, match=r"train/bee/f\.jpeg"):
        check.glance(source)
    assert "train/bee/f.jpeg" in check.check_pictures(source)[0]


def test_of_a_large_set_the_glance_takes_a_sample(image_folder, monkeypatch):
    monkeypatch.setattr(check, "GLANCED_AT", 2)  # the first and the last
    source, seen = open_source("folder", "train", folder=image_folder), []
    monkeypatch.setattr(check, "_looks_whole", lambda path: seen.append(path) or True)
    check.glance(source)
    assert sorted(seen) == [source.path(0), source.path(6)]


def test_processes_share_the_glance(image_folder):
    source = open_source("folder", "train", folder=image_folder)
    cut(image_folder / "train/ant/b.jpg")  # the second of 7
    check.glance(source, process_index=0, process_count=3)
    with pytest.raises(ValueError, match=r"^1 of 2 pictures cannot be read"):
        check.glance(source, process_index=1, process_count=3)


def test_arrays_need_no_glance():
    source = open_source("synthetic", "train", examples=3)
    check.glance(source)
    assert check.check_pictures(source) == []


def test_the_command_lists_all_and_fails(image_folder, capsys):
    main(["check-data", str(image_folder)])
    assert capsys.readouterr().out.splitlines() == [
        "train: 7 pictures of 2 classes, 0 unreadable",
        "eval: 4 pictures of 2 classes, 0 unreadable",
    ]
    for name in ("train/ant/a.JPEG", "train/bee/g.PNG", "test/bee/k.jpg"):
        cut(image_folder / name)
    with pytest.raises(SystemExit, match="error: 3 pictures cannot be decoded"):
        main(["check-data", str(image_folder)])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("images/")[-1].split("'")[0] for line in lines if "cannot be decoded" in line] == [
        *("train/ant/a.JPEG", "train/bee/g.PNG", "test/bee/k.jpg")
    ]
    assert "train: 7 pictures of 2 classes, 2 unreadable" in lines


def test_the_command_takes_the_data_of_a_config(image_folder, monkeypatch, capsys):
    from ..command import ROOT

    monkeypatch.chdir(ROOT)
    main(["check-data", "--config", "configs/cifar10.py", f"--config.data.folder={image_folder}"])
    assert "train: 7 pictures" in capsys.readouterr().out
    with pytest.raises(SystemExit, match=r"error: data\.name='folder' needs --config\.data\.folder=PATH"):
        main(["check-data", "--config", "configs/cifar10.py"])
    with pytest.raises(SystemExit, match="error: check-data needs a folder of pictures, or a config"):
        main(["check-data"])
