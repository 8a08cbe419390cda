"""PyTorch's names into attention layers and hosts, however the original groups its projections; and state."""

import numpy as np
import pytest
from safetensors.numpy import save_file

import flatten_jax
from flatten_jax.attention import Site
from flatten_jax.hosts import FocusedLinearAttention, QKVAttention, ReducedAttention, StripeAttention, WindowAttention
from flatten_jax.hosts.drop_in import AttentionLayer
from flatten_jax.weights.convert import from_torch, to_torch
from flatten_jax.weights.layout import entries, layout
from flatten_jax.weights.load import load_weights, load_with_report
from flatten_jax.weights.torch_file import read_torch

from . import toys
from .make_fixtures import OPTIONS, value
from .small import equal, random_variables, tiny

X = np.zeros((1, 16, 8), np.float32)
TOLD = dict(example=X, grid=(4, 4))


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    toys.register(monkeypatch)


def filled(layer, **told):
    """A state dict with the names that the layer wants."""
    return {name: value(name, shape) for name, shape in entries(layout(layer, **{**TOLD, **told})).items()}


@pytest.mark.parametrize(
    "layer",
    [
        AttentionLayer("toy_gated", 2),
        FocusedLinearAttention(2),
        QKVAttention(2, "toy_bare"),
        ReducedAttention(2, "toy_gated", sr_ratio=2),
        WindowAttention(2, 2, True, "softmax"),
        StripeAttention(2, 2, 2, attn_type="toy_gated"),
    ],
)
def test_layers_and_hosts_are_filled_by_name_and_give_the_names_back(layer):
    state_dict = filled(layer)
    variables = from_torch(state_dict, layer, **TOLD)
    layer.apply(variables, X, (4, 4) if isinstance(layer, FocusedLinearAttention | AttentionLayer) else Site((4, 4)))
    equal(to_torch(variables, layer, **TOLD), state_dict)


def test_names_of_the_original_fill_the_projection_in_the_order_of_its_streams():
    state_dict = filled(QKVAttention(2, "toy_bare"))
    assert set(state_dict) == {
        f"{layer}.{leaf}" for layer in ("to_q", "key.proj", "to_v", "to_out.0") for leaf in ("weight", "bias")
    }
    params = from_torch(state_dict, QKVAttention(2, "toy_bare"), **TOLD)["params"]
    parts = [state_dict[f"{name}.weight"].T for name in ("to_q", "key.proj", "to_v")]
    np.testing.assert_array_equal(params["qkv"]["kernel"], np.concatenate(parts, axis=1))


def test_the_streams_of_one_projection_are_those_of_several():
    whole, apart = QKVAttention(2, "focused"), ReducedAttention(2, "focused")
    state_dict = filled(whole)
    split = dict(state_dict)
    for leaf in ("weight", "bias"):
        qkv = split.pop(f"qkv.{leaf}")
        split |= {f"q.{leaf}": qkv[:8], f"kv.{leaf}": qkv[8:]}
    of_whole, of_apart = from_torch(split, whole, **TOLD), from_torch(state_dict, apart, **TOLD)
    equal(of_whole, from_torch(state_dict, whole, **TOLD))
    equal(of_apart, from_torch(split, apart, **TOLD))
    equal(to_torch(of_apart, apart, **TOLD), split)
    single = {**split, **{f"{c}.weight": split["kv.weight"][8 * i : 8 * i + 8] for i, c in enumerate("kv")}}
    del single["kv.weight"]
    equal(from_torch(single, whole, **TOLD), of_whole)


def test_a_layer_within_a_token_may_be_a_convolution_of_one_pixel():
    layer = QKVAttention(2, "toy_gated")
    state_dict = filled(layer)
    assert state_dict["qkvo.weight"].shape == (32, 8, 1, 1)
    assert state_dict["mix.weight"].shape == (8, 8, 1, 1)
    variables = from_torch(state_dict, layer, **TOLD)
    flat = {name: array.reshape(array.shape[:2]) if array.ndim == 4 else array for name, array in state_dict.items()}
    equal(from_torch(flat, layer, **TOLD), variables)
    np.testing.assert_array_equal(variables["params"]["mix"]["kernel"], flat["mix.weight"].T)
    plain = filled(QKVAttention(2, "softmax"))
    convolution = {**plain, "qkv.weight": plain["qkv.weight"][..., None, None]}
    equal(
        from_torch(convolution, QKVAttention(2, "softmax"), **TOLD),
        from_torch(plain, QKVAttention(2, "softmax"), **TOLD),
    )


def test_all_that_is_wrong_with_a_layer_is_listed():
    layer = flatten_jax.LinearAttention("focused", 2)
    state_dict = filled(layer)
    del state_dict["scale"]
    state_dict |= {"extra": np.zeros(2), "dwc.bias": np.zeros(9), "qkv.bias": np.zeros(25), "rotations": np.zeros(3)}
    with pytest.raises(ValueError) as error:
        from_torch(state_dict, layer, **TOLD)
    assert str(error.value) == (
        "the state dict does not fit AttentionLayer:\n  missing (1): scale\n  unexpected (1): extra\n"
        "  misshapen (2): dwc.bias: (9,) given, (4,) expected, qkv.bias: (25,) given, (24,) expected"
    )
    with pytest.raises(ValueError, match="ReducedAttention needs grid="):
        from_torch({}, ReducedAttention(2), example=X)
    with pytest.raises(ValueError, match=r"not those of this AttentionLayer:\n  missing \(8\)"):
        to_torch({"params": {}}, layer, **TOLD)


def test_a_file_fills_a_layer(tmp_path):
    layer, told = flatten_jax.LinearAttention("toy_gated", 2), dict(example=np.zeros((1, 17, 8)), grid=(4, 4), prefix=1)
    state_dict = filled(layer, **told)
    save_file(state_dict, tmp_path / "x.safetensors", metadata={"format": "pt"})
    equal(read_torch(tmp_path / "x.safetensors")[0], state_dict)
    equal(load_weights(tmp_path / "x.safetensors", layer, **told), from_torch(state_dict, layer, **told))


def test_running_statistics_and_constants_are_carried(tmp_path):
    model = tiny(attn_type="toy_counting", depth=1)
    variables = random_variables(model)
    variables["constants"]["blocks_0"]["attn"]["order"] = np.array([2, 0, 1, 3], np.int32)
    state_dict = to_torch(variables, model)
    np.testing.assert_array_equal(
        state_dict["blocks.0.attn.bn.running_var"], variables["batch_stats"]["blocks_0"]["attn"]["bn"]["var"]
    )
    assert state_dict["blocks.0.attn.order"].dtype == np.int32
    given = {**state_dict, "blocks.0.attn.bn.num_batches_tracked": np.array(7)}
    equal(from_torch(given, model), variables)
    loaded, report = load_with_report(given, model)
    equal(loaded, variables)
    assert "ignored 1: num_batches_tracked" in str(report)
    equal(load_weights(variables, model), variables)
    flatten_jax.save_weights(
        tmp_path / "x.safetensors", variables, "flatten_deit_t", {**OPTIONS, "attn_type": "toy_counting", "depth": 1}
    )
    equal(load_weights(tmp_path / "x.safetensors", model), variables)
    del given["blocks.0.attn.bn.running_mean"]
    with pytest.raises(ValueError, match=r"missing \(1\): blocks\.0\.attn\.bn\.running_mean"):
        from_torch(given, model)
