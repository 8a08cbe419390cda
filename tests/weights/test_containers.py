"""Where weights lie in what people save, and what lies beside them."""

import logging

import numpy as np
import pytest

from flatten_jax.weights import convert
from flatten_jax.weights.containers import AVERAGED, PLAIN, weights_in
from flatten_jax.weights.convert import from_torch
from flatten_jax.weights.load import load_weights, load_with_report

from .make_fixtures import weights
from .small import equal, tiny

W = {"a.weight": np.zeros((2, 3), np.float32), "a.bias": np.ones(2, np.float32)}
E = {"a.weight": np.ones((2, 3), np.float32), "a.bias": np.zeros(2, np.float32)}


@pytest.mark.parametrize("key", PLAIN)
def test_known_keys(key):
    found = weights_in("x", {"epoch": 3, key: W, "optimizer": {"state": {0: {"exp_avg": np.zeros(3)}}}, "loss": 0.5})
    assert (found.key, found.entries, found.notes) == (key, W, ())


@pytest.mark.parametrize("key", AVERAGED)
def test_averages_are_taken_when_asked_for_and_said_otherwise(key):
    both = {"model": W, key: E}
    found, averaged = weights_in("x", both), weights_in("x", both, ema=True)
    assert found.entries is not E and found.entries.keys() == W.keys() and found.key == "model"
    assert averaged.key == key and averaged.entries["a.bias"] is E["a.bias"]
    assert found.notes[0].endswith(f"took 'model'; ema=True (--ema) takes {key!r}")
    with pytest.raises(ValueError, match=rf"only a moving average, '{key}': ask for it with ema=True"):
        weights_in("x", {key: E})


@pytest.mark.parametrize(
    ("content", "key"),
    [
        ({"model": {"model": W}}, "model.model"),
        ({"state_dict": {"model": W, "optimizer": {}}}, "state_dict.model"),
        ({"checkpoint": {"state_dict": W}}, "checkpoint.state_dict"),
        ({"generator": W, "step": 3}, "generator"),
        ({"model": {"name": "x"}, "state_dict": W}, "state_dict"),
        ({"model": list(W.items())}, "model"),
        (list(W.items()), ""),
        ({**W, "epoch": 3, "none": None, "_extra_state": {"a": 1}}, ""),
    ],
)
def test_nested_lists_and_company(content, key):
    found = weights_in("x", content)
    assert found.key == key and found.entries.keys() == W.keys()


def test_what_is_no_tensor_is_said():
    found = weights_in("x", {**W, "epoch": 3, "none": None, "_extra_state": {"a": 1}})
    assert found.remarks() == ["no tensors, left out: epoch (an int), none (None), _extra_state (a dict)"]


@pytest.mark.parametrize(
    ("key", "entries"),
    [
        ("teacher", E),
        ("student.backbone", W),
        ("student.backbone.", W),
        ("student.backbone.a", {"weight": W["a.weight"], "bias": W["a.bias"]}),
        ("deep.er", E),
    ],
)
def test_a_key_is_a_path_of_keys_and_a_beginning_of_names(key, entries):
    inner = {f"backbone.{name}": value for name, value in W.items()}
    content = {"student": {**inner, "head.weight": np.zeros(1)}, "teacher": E, "deep": {"er": {"model": E}}, "epoch": 1}
    found = weights_in("x", content, key=key).entries
    assert found.keys() == entries.keys() and all(found[name] is entries[name] for name in entries)


def test_several_sets_are_listed_with_their_sizes():
    several = {"first": W, "second": E, "epoch": 3}
    listing = r"first \(2 tensors, 8 numbers\), second \(2 tensors, 8 numbers\), epoch \(an int\)"
    with pytest.raises(
        ValueError, match=rf"x holds several sets of weights: {listing}: choose one with key= \(--key\)"
    ):
        weights_in("x", several)
    with pytest.raises(ValueError, match=rf"x has no weights under 'third'; it holds {listing}"):
        weights_in("x", several, key="third")
    with pytest.raises(ValueError, match=r"x holds no weights: epoch \(an int\)"):
        weights_in("x", {"epoch": 3})
    with pytest.raises(ValueError, match="both choose the weights"):
        weights_in("x", several, key="first", ema=True)


class Tensor:
    """As PyTorch's, in what is asked of it: no NumPy while it has a gradient or is on a device, or for bfloat16."""

    is_sparse = False

    def __init__(self, array, dtype="torch.float32", ready=False):
        self.array, self.dtype, self.shape, self.ready = array, dtype, array.shape, ready

    def detach(self):
        return Tensor(self.array, self.dtype)

    def cpu(self):
        return Tensor(self.array, self.dtype, ready=True)

    def float(self):
        return Tensor(self.array, "torch.float32", self.ready)

    def numpy(self):
        if not self.ready or self.dtype != "torch.float32":
            raise TypeError("Got unsupported ScalarType BFloat16, or a tensor that requires grad")
        return self.array

    __array__ = numpy


@pytest.mark.parametrize("dtype", ["torch.float32", "torch.bfloat16", "torch.float8_e4m3fn"])
def test_pytorchs_tensors_and_parameters_are_taken_without_pytorch(dtype):
    tensors = {name: Tensor(array, dtype) for name, array in weights().items()}
    expected = from_torch(weights(), tiny())
    equal(from_torch(tensors, tiny()), expected)
    equal(load_weights({"model": tensors, "epoch": 3}, tiny()), expected)


def test_bfloat16_of_jax_is_taken():
    import jax.numpy as jnp

    expected = from_torch(weights(), tiny())
    equal(load_weights({name: jnp.asarray(array, jnp.bfloat16) for name, array in weights().items()}, tiny()), expected)


def test_a_tree_without_its_wrapper_is_recognised():
    expected = from_torch(weights(), tiny())
    equal(load_weights(expected["params"], tiny()), expected)


def test_a_sparse_tensor_of_pytorch_is_made_dense():
    dense = Tensor(np.ones(3, np.float32))
    dense.is_sparse, dense.to_dense = True, lambda: Tensor(np.zeros(2, np.float32), ready=True)
    dense.detach = dense.cpu = lambda: dense
    np.testing.assert_array_equal(convert.as_array(dense), np.zeros(2))


def test_numbers_that_are_none_are_said_by_name(caplog):
    given = weights()
    given["head.weight"][0, 0], given["norm.bias"][1] = np.nan, np.inf
    said = f"not-a-number or infinite values in 2 of {len(given)} entries: head.weight, norm.bias"
    assert load_with_report(given, tiny())[1].notes == (said,)
    with caplog.at_level(logging.WARNING, "flatten_jax"):
        from_torch(given, tiny())
    assert said in caplog.text
