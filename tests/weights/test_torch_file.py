"""Files of PyTorch: what real ones hold, and what broken, foreign and hostile ones are told."""

import gzip
import io
import os
import pickle
import struct
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest

from flatten_jax.weights import unpickle
from flatten_jax.weights.torch_file import read_torch

from .by_hand import archive, body, legacy, pickled, tensor
from .make_fixtures import weights

HERE = Path(__file__).parent


@pytest.mark.parametrize(
    ("name", "ema", "key"),
    [
        ("release.pth", False, "model"),
        ("release.pth", True, "state_dict_ema"),
        ("release_legacy.pth", False, "model"),
        ("release_legacy.pth", True, "state_dict_ema"),
        ("timm.pth", False, "state_dict"),
        ("half.pth", False, ""),
        ("bfloat16.pth", False, ""),
        ("bfloat16.safetensors", False, ""),
        ("parameters.pth", False, ""),
        ("views.pth", False, ""),
        ("views_legacy.pth", False, ""),
    ],
)
def test_reads_what_pytorch_wrote(name, ema, key):
    arrays, info = read_torch(HERE / name, ema=ema)
    expected = weights("ema" if ema else "")
    assert info.key == key
    assert arrays.keys() == expected.keys()
    for entry, array in arrays.items():
        np.testing.assert_array_equal(array, expected[entry], err_msg=entry)


def test_reads_the_rest_of_a_training_checkpoint():
    _, info = read_torch(HERE / "release.pth")
    assert (info.extra["epoch"], info.extra["max_accuracy"]) == (299, 74.1)
    assert info.extra["config"]["MODEL"] == {"TYPE": "flatten_deit", "LA": {"FOCUSING_FACTOR": 3}}
    assert "took 'model'; ema=True (--ema) takes 'state_dict_ema'" in info.notes[0]
    assert read_torch(HERE / "timm.pth")[1].extra["args"]["lr"] == 5e-4


def test_ema_must_be_there_and_must_be_asked_for(tmp_path):
    with pytest.raises(ValueError, match=r"holds no moving average .* only state_dict, arch, args, metric"):
        read_torch(HERE / "timm.pth", ema=True)
    with pytest.raises(ValueError, match="one set of weights, no moving average"):
        read_torch(HERE / "bfloat16.safetensors", ema=True)
    content = b"\x80\x02}" + body("model_ema") + pickled(tensor())[2:-1] + b"s."
    with pytest.raises(ValueError, match=r"only a moving average, 'model_ema': ask for it with ema=True"):
        read_torch(archive(tmp_path / "x.pth", content))


def test_the_files_made_by_hand_are_read(tmp_path):
    for path in archive(tmp_path / "zip.pth", pickled(tensor())), legacy(tmp_path / "legacy.pth", pickled(tensor())):
        np.testing.assert_array_equal(read_torch(path)[0]["w0"], np.zeros((2, 3)))


class Bomb:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("form", ["zip", "legacy", "plain", "safetensors", "protocol 0", "protocol 4", "inst"])
def test_a_pickle_bomb_is_refused_by_name_and_does_not_go_off(form, tmp_path):
    path, mark = tmp_path / ("x.safetensors" if form == "safetensors" else "x.pth"), tmp_path / "exploded"
    bomb = pickle.dumps({"model": Bomb(mark)}, protocol={"protocol 0": 0, "protocol 4": 4}.get(form, 2))
    if form == "inst":
        bomb = b"(S'touch %s'\niposix\nsystem\n." % str(mark).encode()
    if form == "zip":
        archive(path, bomb)
    elif form == "legacy":
        legacy(path, bomb)
    else:
        path.write_bytes(bomb)
    message = "no whole safetensors file" if form == "safetensors" else r"is refused: it asks for 'posix\.system'"
    with pytest.raises(ValueError, match=message):
        read_torch(path)
    assert not mark.exists()


@pytest.mark.parametrize(
    "name", ["builtins.eval", "torch.load", "torch.jit.load", "numpy.load", "functools.partial", "builtins.getattr"]
)
def test_names_beside_the_allowed_ones_are_refused(name, tmp_path):
    module, _, attribute = name.rpartition(".")
    path = archive(tmp_path / "x.pth", b"\x80\x02c" + f"{module}\n{attribute}\n".encode() + b".")
    with pytest.raises(ValueError, match=f"asks for '{name}'.*nothing of it was executed.*save it again"):
        read_torch(path)


def test_a_whole_pickled_model_is_refused_with_a_way_out(tmp_path):
    content = b"\x80\x02cmodels.flatten_swin\nFLattenSwinTransformer\n)\x81."
    with pytest.raises(ValueError, match=r"FLattenSwinTransformer'.*torch\.save\(model\.state_dict\(\), path\)"):
        read_torch(archive(tmp_path / "x.pth", content))


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (tensor(shape=(3, 3)), "leaves its storage of 6 elements"),
        (tensor(offset=1), "leaves its storage"),
        (tensor(stride=(4, 1)), "leaves its storage"),
        (tensor(shape=(10**6, 10**6), stride=(0, 0)), "unpacks to many times its"),  # 4 TB out of 24 bytes
        (tensor(offset=-1), "a tensor of"),
        (tensor(stride=(-3, 1)), "a tensor of"),
        (tensor(shape=(0, 10**9, 10**9), stride=(1, 1, 1)), "a tensor of"),
        (tensor(shape=(1,) * 40, stride=(1,) * 40), "a tensor of"),
        (tensor(size=7), "storage 0 has 24 bytes, not 28"),
        (tensor(storage=b"torch\nDoubleStorage"), "storage 0 has 24 bytes, not 48"),
        (tensor(key="../version"), "lacks its entry"),
        (tensor(key="1"), "lacks its entry archive/data/1"),
        (tensor(storage=b"torch\nUntypedStorage"), "storage 0 has 24 bytes, not 6"),
        (tensor(storage=b"torch\nQInt8Storage"), "asks for 'torch.QInt8Storage'"),
        (tensor(storage=b"torch\nSize"), "no storage of plain numbers"),
    ],
)
def test_tensors_must_lie_in_their_storages(made, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        read_torch(archive(tmp_path / "x.pth", pickled(made)))


def test_a_storage_has_one_type(tmp_path):
    with pytest.raises(ValueError, match="'0' of two types or sizes"):
        read_torch(archive(tmp_path / "x.pth", pickled(tensor(), tensor(storage=b"torch\nIntStorage"))))


def test_many_views_of_one_storage_are_no_way_to_fill_the_memory(tmp_path):
    with pytest.raises(ValueError, match="unpacks to many times its"):
        read_torch(archive(tmp_path / "x.pth", pickled(*[tensor(size=1000, shape=(1000,), stride=(1,))] * 400)))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\x80\x02}", "a damaged pickle"),  # no STOP
        (b"\x80\x02.", "the stack is empty"),
        (b"\x80\x02(.", "the stack is empty"),
        (b"\x80\x02t.", "no mark"),
        (b"\x80\x02h\x07.", "a damaged pickle"),  # a memo that was never set
        (b"\x80\x02}]K\x01s.", "a key of type list"),
        (b"\x80\x02}" + b")\x85\x85" + b"K\x01s.", "a key of type tuple"),
        (b"\x80\x02}}R.", "a call of dict"),  # calls what is no allowed name
        (b"\x80\x02ctorch\nfloat32\n)R.", "a call of torch.float32"),
        (b"\x80\x02ccollections\nOrderedDict\n)RcConfig\nx\n.", "asks for 'Config.x'"),
        (b"\x80\x02)K\x01a.", "append to what is no list"),
        (b"\x80\x02\x8d" + struct.pack("<Q", 2**62) + b"x.", "ends in the middle"),
        (b"\x80\x02\x82\x01.", "an opcode EXT1"),
        (b"\x80\x02K\x05.", "holds an int, not a state dict"),
    ],
)
def test_damaged_pickles(content, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        read_torch(archive(tmp_path / "x.pth", content))


def test_no_more_objects_and_bytes_than_weights_need(tmp_path, monkeypatch):
    monkeypatch.setattr(unpickle, "MAX_OBJECTS", 1000)
    # A list of 100, copied by each of 50 calls.
    copies = body([("k", 1)] * 100) + b"ccollections\nOrderedDict\nh\x00\x85R" * 50
    with pytest.raises(ValueError, match="makes more than 1000 objects"):
        read_torch(archive(tmp_path / "x.pth", b"\x80\x02" + copies + b"."))
    with pytest.raises(ValueError, match="makes more than 1000 objects"):
        read_torch(archive(tmp_path / "x.pth", b"\x80\x02" + b"]" * 1001 + b"."))
    monkeypatch.setattr(unpickle, "MAX_PICKLE_BYTES", 100)
    with pytest.raises(ValueError, match="larger than a pickle of weights"):
        read_torch(archive(tmp_path / "x.pth", b"\x80\x02" + body("x" * 200) + b"."))


def test_npz_files_are_read_under_either_names(tmp_path):
    arrays = {"a.weight": np.ones((2, 3), np.float32), "a.bias": np.zeros(2, np.float32)}
    for save in np.savez, np.savez_compressed:
        save(tmp_path / "x.npz", **arrays)
        found, info = read_torch(tmp_path / "x.npz")
        assert found.keys() == arrays.keys() and (info.kind, info.metadata) == ("npz", {})
        np.testing.assert_array_equal(found["a.weight"], 1)
    np.savez(tmp_path / "ours.npz", **{"params/blocks_0/attn/qkv/kernel": np.ones(3)})
    found, info = read_torch(tmp_path / "ours.npz")
    assert found.keys() == {"blocks_0/attn/qkv/kernel"} and info.metadata == {"format": "flatten_jax"}
    (tmp_path / "x.npz").write_bytes((tmp_path / "x.npz").read_bytes()[:-30])
    with pytest.raises(ValueError, match="is damaged"):
        read_torch(tmp_path / "x.npz")
    np.savez(tmp_path / "x.npz", a=np.array({"w": 1}, object))
    with pytest.raises(ValueError, match="holds more than arrays of numbers"):
        read_torch(tmp_path / "x.npz")
    np.savez_compressed(tmp_path / "x.npz", a=np.zeros(1 << 20))
    with pytest.raises(ValueError, match="unpacks to many times"):
        read_torch(tmp_path / "x.npz")


def test_names_must_stay_different_without_their_prefix(tmp_path):
    content = b"\x80\x02}" + body("w") + tensor() + b"s" + body("module.w") + tensor() + b"s."
    with pytest.raises(ValueError, match=r"same names with and without the prefix 'module\.'"):
        read_torch(archive(tmp_path / "x.pth", content))


def test_a_flipped_bit_fails_the_checksum(tmp_path):
    path = archive(tmp_path / "x.pth", pickled(tensor()), **{"data/0": b"\x11" * 24})
    path.write_bytes(path.read_bytes().replace(b"\x11" * 24, b"\x11" * 23 + b"\x10"))
    with pytest.raises(ValueError, match="archive/data/0 does not match its checksum"):
        read_torch(path)


def test_a_zip_bomb_is_not_unpacked(tmp_path):
    content = pickled(tensor(size=1 << 20, shape=(1 << 20,), stride=(1,)))
    with pytest.raises(ValueError, match="unpacks to more than its"):
        read_torch(archive(tmp_path / "x.pth", content, zipfile.ZIP_DEFLATED, **{"data/0": bytes(4 << 20)}))


def test_half_a_download_says_so(tmp_path):
    sizes = {
        name: os.path.getsize(HERE / name) for name in ("release.pth", "release_legacy.pth", "bfloat16.safetensors")
    }
    messages = {
        # The pickle, at the front, says what must follow: 2 x 1187 weights, the optimizer and the generator's state.
        "release.pth": r"half a download: .* too early, after 20000 bytes, its tensors alone take \d{5}",
        "release_legacy.pth": f"half a download: 20000 bytes of {sizes['release_legacy.pth']}",
        "bfloat16.safetensors": f"damaged: 7000 bytes instead of the {sizes['bfloat16.safetensors']} its header names",
    }
    for name, message in messages.items():
        path = tmp_path / name
        path.write_bytes((HERE / name).read_bytes()[: 7000 if name.endswith("safetensors") else 20000])
        with pytest.raises(ValueError, match=f"{message}.*download it again"):
            read_torch(path)
    path.write_bytes((HERE / name).read_bytes()[:1000])
    with pytest.raises(
        ValueError, match=r"1000 bytes and is no whole safetensors file.*its header alone has \d+ bytes"
    ):
        read_torch(path)


def tar(**entries) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for name, data in entries.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return file.getvalue()


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 116790272\n"


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", r"empty \(0 bytes\)"),
        (
            b"\n<!DOCTYPE html><html><head><title>Google Drive - Virus scan warning</title>",
            "'Google Drive - Virus scan",
        ),
        (b"<html>", "is a web page of 6 bytes, not weights: the link led to a page with a login"),
        (b"<?xml version='1.0'?><Error>", "is a web page of 28 bytes"),
        (LFS, "git-lfs pointer of 74 bytes; the weights themselves have 116790272 bytes: run `git lfs pull`"),
        (tar(sys_info=b"x", pickle=b"x"), "tar archive, as PyTorch before 0.4 wrote: .*save it again"),
        (gzip.compress(b"x", mtime=0), "gzip-compressed: unpack it first"),
    ],
)
def test_files_that_are_something_else(data, message, suffix, tmp_path):
    path = tmp_path / f"weights{suffix}"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=message):
        read_torch(path)


def test_what_is_nothing_known_is_shown(tmp_path):
    path = tmp_path / "x.bin"
    path.write_bytes(b"\x93NUMPY\x01\x00 and so on")
    with pytest.raises(ValueError, match=r"\(18 bytes\) is no file of torch.save .* begins with b'.x93NUMPY"):
        read_torch(path)
    path.write_bytes(pickle.dumps({"w": [1, 2]}))
    with pytest.raises(ValueError, match="it is a plain pickle"):
        read_torch(path)
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("arr_0.npy", b"x")
    with pytest.raises(ValueError, match=r"a zip archive, but not one of torch\.save: arr_0\.npy"):
        read_torch(path)
    with pytest.raises(FileNotFoundError, match="no file of weights at"):
        read_torch(tmp_path / "none.pth")


def test_torchscript_and_big_endian_archives_are_told_what_to_do(tmp_path):
    with pytest.raises(ValueError, match=r"TorchScript archive, a program with weights: .*save it again"):
        read_torch(archive(tmp_path / "x.pth", pickled(tensor()), **{"constants.pkl": b"\x80\x02)."}))
    for path in (
        archive(tmp_path / "x.pth", pickled(tensor()), byteorder=b"big"),
        legacy(tmp_path / "y.pth", pickled(tensor()), little=False),
    ):
        with pytest.raises(ValueError, match="big-endian"):
            read_torch(path)


def test_a_legacy_file_must_hold_the_storages_of_its_tensors(tmp_path):
    with pytest.raises(ValueError, match="its storages are not those of its tensors"):
        read_torch(legacy(tmp_path / "x.pth", pickled(tensor(key="1"))))
    path = legacy(tmp_path / "x.pth", pickled(tensor()))
    path.write_bytes(path.read_bytes().replace(struct.pack("<q", 6) + bytes(24), struct.pack("<q", 5) + bytes(24)))
    with pytest.raises(ValueError, match="storage 0 has 5 elements, not 6"):
        read_torch(path)
