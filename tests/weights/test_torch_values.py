"""Values in files of PyTorch that are not its plain tensors: read, stood in for, or refused, and said."""

import json
import pickle
import struct

import ml_dtypes
import numpy as np
import pytest

from flatten_jax.weights.torch_file import read_torch

from .by_hand import archive, body, pickled, tensor


def test_entries_that_are_no_tensors_are_named(tmp_path):
    content = b"\x80\x02}" + body("w") + tensor() + b"s" + body("lr") + body(0.5) + b"s."
    arrays, info = read_torch(archive(tmp_path / "x.pth", content))
    assert arrays.keys() == {"w"}
    assert info.remarks == ("no tensors, left out: lr (a float)",)


def beside(value: bytes) -> bytes:
    """The pickle of {"model": {"w": a tensor}, "other": value}."""
    return b"\x80\x02}" + body("model") + b"}" + body("w") + tensor() + b"ss" + body("other") + value + b"s."


def made(name: str, arguments: bytes = b")", state: bytes = b"") -> bytes:
    """An object, by NEWOBJ and BUILD."""
    return b"c%s\n%s\n" % tuple(part.encode() for part in name.rsplit(".", 1)) + arguments + b"\x81" + state


@pytest.mark.parametrize(
    "name",
    [
        "omegaconf.dictconfig.DictConfig",
        "datetime.timedelta",
        "datetime.datetime",
        "torch.optim.sgd.SGD",
        "torch.optim.lr_scheduler.CosineAnnealingLR",
        "timm.scheduler.cosine_lr.CosineLRScheduler",
        "mmengine.logging.history_buffer.HistoryBuffer",
        "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint",
        "typing.Any",
        "numpy.random._pickle.__randomstate_ctor",
    ],
)
def test_objects_beside_the_weights_are_stood_in_for_and_said(name, tmp_path):
    value = made(name, state=b"}" + body("a") + body([1]) + b"sb") if name != "typing.Any" else made(name)[:-2]
    arrays, info = read_torch(archive(tmp_path / "x.pth", beside(value)))
    assert arrays.keys() == {"w"}
    assert info.remarks == (f"beside the weights, not opened: {name}",)


@pytest.mark.parametrize(
    "name", ["torch.optim.sgd.step", "omegaconf.load", "torch.nn.modules.linear.Linear", "os.PathLike"]
)
def test_functions_and_models_are_not_stood_in_for(name, tmp_path):
    with pytest.raises(ValueError, match=f"asks for '{name}'"):
        read_torch(archive(tmp_path / "x.pth", beside(made(name))))


@pytest.mark.parametrize(
    ("value", "found"),
    [
        (made("addict.addict.Dict", b"(" + body(("a", 1)) + b"t", body("b") + body(2) + b"s"), {"a": 1, "b": 2}),
        (made("yacs.config.CfgNode", state=body("a") + body(1) + b"s"), {"a": 1}),
        (b"ccollections\ndefaultdict\nc__builtin__\nlist\n\x85R" + body("a") + body([1]) + b"s", {"a": [1]}),
    ],
)
def test_configs_are_read(value, found, tmp_path):
    content = beside(value).replace(body("other"), body("config"))
    assert read_torch(archive(tmp_path / "x.pth", content))[1].extra["config"] == found


def test_texts_and_lists_of_other_classes_are_read(tmp_path):
    version = made("torch.torch_version.TorchVersion", b"(" + body("2.0") + b"t")
    assert read_torch(archive(tmp_path / "x.pth", beside(version)))[1].extra["other"] == "2.0"
    deque = b"ccollections\ndeque\n(" + body([1, 2]) + body(3) + b"tR"
    assert read_torch(archive(tmp_path / "x.pth", beside(deque)))[1].remarks == ()


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_numpy_arrays_are_weights_too(protocol, tmp_path):
    given = {
        "c": np.arange(6, dtype=np.float32).reshape(2, 3),
        "fortran": np.asfortranarray(np.arange(6, dtype=np.float64).reshape(2, 3)),
        "big": np.arange(4, dtype=">f4"),
        "half": np.ones((0, 2), np.float16),
    }
    company = {"scalar": np.float64(1.5), "objects": np.array([1, "x"], object), "text": np.array(["a"])}
    content = pickle.dumps({**given, **company}, protocol=protocol)
    arrays, info = read_torch(archive(tmp_path / "x.pth", content))
    assert arrays.keys() == given.keys()
    for name, array in given.items():
        np.testing.assert_array_equal(arrays[name], array)
        assert arrays[name].dtype == array.dtype.newbyteorder("=")
    assert "scalar (a float)" in info.remarks[0] and "objects (a numpyarray)" in info.remarks[0]


def test_numpy_arrays_must_have_their_bytes(tmp_path):
    content = pickle.dumps({"w": np.arange(6, dtype=np.float32)}, protocol=5)
    with pytest.raises(ValueError, match=r"a NumPy array of shape=\(7,\) in 24 bytes"):
        read_torch(archive(tmp_path / "x.pth", content.replace(b"K\x06", b"K\x07")))


def test_expanded_tensors_are_read(tmp_path):
    content = pickled(tensor(shape=(2, 3), stride=(0, 1)), tensor(shape=(5,), stride=(0,), offset=5))
    arrays, _ = read_torch(archive(tmp_path / "x.pth", content, **{"data/0": np.arange(6, dtype=np.float32).tobytes()}))
    np.testing.assert_array_equal(arrays["w0"], [[0, 1, 2]] * 2)
    np.testing.assert_array_equal(arrays["w1"], [5] * 5)


def test_tensors_of_eight_bits_are_read_from_both_kinds_of_files(tmp_path):
    numbers = np.array([0.5, -1.5, 448], ml_dtypes.float8_e4m3fn)
    made = tensor(storage=b"torch.storage\nUntypedStorage", size=3, shape=(3,), stride=(1,))
    made = made.replace(b"_rebuild_tensor_v2", b"_rebuild_tensor_v3")[:-2] + b"ctorch\nfloat8_e4m3fn\ntR"
    header = json.dumps({"w0": {"dtype": "F8_E4M3", "shape": [3], "data_offsets": [0, 3]}}).encode()
    path = tmp_path / "x.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header + numbers.tobytes())
    for file in path, archive(tmp_path / "x.pth", pickled(made), **{"data/0": numbers.tobytes()}):
        array = read_torch(file)[0]["w0"]
        np.testing.assert_array_equal(array, [0.5, -1.5, 448])
        assert array.dtype == np.float32


@pytest.mark.parametrize(
    ("name", "said"),
    [("_rebuild_sparse_tensor", r"sparse tensor: .*to_dense"), ("_rebuild_qtensor", "quantised.*dequantize")],
)
def test_tensors_that_are_not_read_say_what_to_do(name, said, tmp_path):
    with pytest.raises(ValueError, match=said):
        read_torch(archive(tmp_path / "x.pth", pickled(b"ctorch._utils\n%s\n)R" % name.encode())))
