import fcntl
import importlib.util
import io
import tarfile
import types

import pytest

from flatten_jax.data import prepare as prepare_module
from flatten_jax.data.prepare import check_imagenet_tars, prepare
from flatten_jax.data.sources import open_source

CLASSES = ("n01440764", "n01443537", "n01484850")
needs_tensorflow = pytest.mark.skipif(not importlib.util.find_spec("tensorflow"), reason="needs TensorFlow")


def tar(files: dict[str, bytes]) -> bytes:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return content.getvalue()


@pytest.fixture
def tars(tmp_path, picture):
    """The two tars of ImageNet with two training pictures a class and three of validation."""
    (tmp_path / "tars").mkdir()
    inner = {f"{c}.tar": tar({f"{c}_{j}.JPEG": picture(10 * i + j) for j in (1, 2)}) for i, c in enumerate(CLASSES)}
    (tmp_path / "tars/ILSVRC2012_img_train.tar").write_bytes(tar(inner))
    validation = {f"ILSVRC2012_val_{i:08d}.JPEG": picture(100 + i) for i in (1, 2, 3)}
    (tmp_path / "tars/ILSVRC2012_img_val.tar").write_bytes(tar(validation))
    return tmp_path / "tars"


def cut(path, size):
    path.write_bytes(path.read_bytes()[:size])


def cut_the_end(path):
    """Takes away the two empty blocks that say that the tar is complete."""
    with tarfile.open(path) as archive:
        last = archive.getmembers()[-1]
    cut(path, last.offset_data + -(-last.size // 512) * 512)


def damage_header(path, name):
    content = bytearray(path.read_bytes())
    start = content.index(name.encode())
    content[start + 148 : start + 156] = b"00000000"  # the checksum of a tar header
    path.write_bytes(content)


def test_good_tars_pass(tars, capsys):
    check_imagenet_tars(tars)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("file", ["ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar"])
@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda path: path.write_bytes(b""), "is empty"),
        (lambda path: path.write_bytes(b"\n<!DOCTYPE html><html>Log in</html>"), "is a web page and not a tar"),
        (lambda path: path.write_bytes(b"\x1f\x8b\x08" + bytes(1000)), "is compressed: unpack it with gunzip"),
        (lambda path: path.write_bytes(bytes(range(256)) * 20), "is not a tar"),
        (lambda path: path.write_bytes(tar({})), "is a tar without files"),
        (lambda path: cut(path, path.stat().st_size // 3), "is cut off"),
        (cut_the_end, "is cut off after"),
        (
            lambda path: path.write_bytes(tar({"val/n01440764_1.JPEG": b""})),
            r"holds \['val/n01440764_1\.JPEG'\]; it has to",
        ),
    ],
)
def test_a_bad_tar_is_named_with_the_layout(tars, file, damage, said):
    damage(tars / file)
    with pytest.raises(ValueError, match=said) as error:
        check_imagenet_tars(tars)
    assert str(error.value).startswith(str(tars / file)) or f"inside {tars / file}" in str(error.value)


@pytest.mark.parametrize("file", ["ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar"])
def test_a_missing_tar_is_named(tars, file):
    (tars / file).unlink()
    with pytest.raises(FileNotFoundError, match=rf"{file} does not exist; .* it has to hold"):
        prepare("imagenet2012", manual_dir=tars, data_dir=tars)


@pytest.mark.parametrize("name", [f"{CLASSES[1]}.tar", f"{CLASSES[0]}_2.JPEG", f"{CLASSES[2]}_2.JPEG"])
def test_a_damaged_header_is_not_taken_for_the_end(tars, name):
    damage_header(tars / "ILSVRC2012_img_train.tar", name)
    with pytest.raises(ValueError, match=r"is damaged at byte \d+, after n01"):
        check_imagenet_tars(tars)


def test_folders_instead_of_class_tars(tars, picture):
    (tars / "ILSVRC2012_img_train.tar").write_bytes(tar({"n01440764/n01440764_1.JPEG": picture(0)}))
    with pytest.raises(ValueError, match=r"holds \['n01440764/n01440764_1\.JPEG'\]; it has to hold one tar per class"):
        check_imagenet_tars(tars)


def test_links_are_not_pictures(tars):
    with tarfile.open(tars / "ILSVRC2012_img_val.tar", "a") as archive:
        link = tarfile.TarInfo("ILSVRC2012_val_00000004.JPEG")
        link.type, link.linkname = tarfile.SYMTYPE, "/elsewhere.JPEG"
        archive.addfile(link)
    with pytest.raises(ValueError, match=r"holds \['ILSVRC2012_val_00000004\.JPEG'\]"):
        check_imagenet_tars(tars)


def test_validation_labels_go_by_position(tars, picture, capsys):
    (tars / "ILSVRC2012_img_val.tar").write_bytes(tar({"ILSVRC2012_val_00000007.JPEG": picture(0)}))
    check_imagenet_tars(tars)
    assert "accuracy on these pictures will mean nothing" in capsys.readouterr().out


def test_manual_dir_is_needed(tmp_path):
    with pytest.raises(ValueError, match="imagenet2012 needs --manual_dir"):
        prepare("imagenet2012", data_dir=tmp_path)


def test_missing_tensorflow_names_the_extra(tars, tmp_path, monkeypatch):
    monkeypatch.setattr(prepare_module.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r"needs TensorFlow: pip install 'flatten_jax\[prepare\]'"):
        prepare("imagenet2012", manual_dir=tars, data_dir=tmp_path / "data")
    assert not (tmp_path / "data").exists()


def test_digits_are_prepared_once(tmp_path, capsys):
    assert prepare("digits", data_dir=tmp_path) == {"train": 1437, "test": 360}
    assert "1,437 train images, 360 test images" in capsys.readouterr().out
    prepare("digits", data_dir=tmp_path)
    assert "digits is already prepared; nothing to do" in capsys.readouterr().out


@needs_tensorflow
@pytest.mark.slow
def test_imagenet_is_built_reported_and_found_again(tars, tmp_path, picture, capsys):
    folder = tmp_path / "data/imagenet2012"
    (folder / "incomplete.AB12CD_5.1.0").mkdir(parents=True)  # what a killed build leaves
    sizes = {"train": 6, "validation": 3}
    assert prepare("imagenet2012", manual_dir=tars, data_dir=tmp_path / "data") == sizes
    said = capsys.readouterr().out
    assert f"removing what an interrupted build left: {folder}/incomplete.AB12CD_5.1.0" in said
    assert "6 of 1,281,167 train images, 3 of 50,000 validation images" in said
    assert "this is not the whole of imagenet2012" in said
    assert not list(folder.glob("incomplete.*"))

    source = open_source("imagenet2012", "train", data_dir=tmp_path / "data")
    assert {source[i].name: (source[i].label, source[i].image) for i in range(6)} == {
        f"{c}_{j}.JPEG": (i, picture(10 * i + j)) for i, c in enumerate(CLASSES) for j in (1, 2)
    }
    (tars / "ILSVRC2012_img_train.tar").unlink()
    assert prepare("imagenet2012", manual_dir=tars, data_dir=tmp_path / "data") == sizes
    assert "already prepared" in capsys.readouterr().out


@needs_tensorflow
def test_a_late_failure_names_the_class_tar(tars, tmp_path):
    damage_header(tars / "ILSVRC2012_img_train.tar", f"{CLASSES[1]}_1.JPEG")  # neither the first nor the last
    with pytest.raises(
        ValueError, match=r"failed, and what it wrote was removed: n01443537\.tar inside .*is not a tar"
    ):
        prepare("imagenet2012", manual_dir=tars, data_dir=tmp_path / "data")
    assert not list((tmp_path / "data/imagenet2012").glob("*5.1.0"))


@needs_tensorflow
def test_a_class_that_tfds_cuts_short_is_noticed(tars, tmp_path):
    damage_header(tars / "ILSVRC2012_img_train.tar", f"{CLASSES[1]}_2.JPEG")
    with pytest.raises(ValueError, match=r"5\.1\.0 lacks pictures: n01443537\.tar inside .* is damaged at byte \d+"):
        prepare("imagenet2012", manual_dir=tars, data_dir=tmp_path / "data")


@needs_tensorflow
def test_a_second_builder_is_sent_away(tars, tmp_path):
    (tmp_path / "data/imagenet2012").mkdir(parents=True)
    with open(tmp_path / "data/imagenet2012/.prepare.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(ValueError, match=r"another process is building in .*imagenet2012: wait for it"):
            prepare("imagenet2012", manual_dir=tars, data_dir=tmp_path / "data")


@needs_tensorflow
def test_a_small_disk_is_noticed_before_building(tars, tmp_path, monkeypatch):
    usage = types.SimpleNamespace(free=10_000)
    monkeypatch.setattr(prepare_module.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(ValueError, match=r"has 0\.0 GB free, 0\.0 GB are needed"):
        prepare("imagenet2012", manual_dir=tars, data_dir=tmp_path / "data")
