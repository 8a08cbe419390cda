"""Weights of a model with another attention: said, and inherited when asked."""

import json

import numpy as np
import pytest
from safetensors import safe_open

from flatten_jax.cli.main import main
from flatten_jax.weights.convert import from_torch, to_torch
from flatten_jax.weights.files import save_weights
from flatten_jax.weights.load import load_weights, load_with_report
from flatten_jax.weights.new import initial

from . import toys
from .make_fixtures import OPTIONS, weights
from .small import equal, random_variables, tiny


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    toys.register(monkeypatch)


def saved(path, attn_type, **options):
    model = tiny(attn_type=attn_type, **options)
    variables = random_variables(model)
    save_weights(path, variables, "flatten_deit_t", {**OPTIONS, "attn_type": attn_type, **options})
    return model, variables


def test_weights_of_another_attention_are_named_with_the_ways_out(tmp_path):
    ways = (
        r"create_model\(\.\.\., attn_type='toy_gated'\) is what they are of, new_attention=True \(--new-attention of "
        r"convert\) inherits the rest and makes the attention new"
    )
    model, variables = saved(tmp_path / "x.safetensors", "toy_gated")
    with pytest.raises(ValueError, match=rf"attn_type='toy_gated' \(the model has 'focused'\): {ways}"):
        load_weights(tmp_path / "x.safetensors", tiny())
    with pytest.raises(ValueError) as error:
        load_weights(to_torch(variables, model), tiny())
    assert "missing (12): " in str(error.value)
    assert "\n  these are names of attn_type='toy_gated', the model has 'focused': create_model(" in str(error.value)
    mixed = tiny(attn_type="toy_gated*1+softmax")
    with pytest.raises(ValueError, match=r"these are names of attn_type='toy_gated\*1\+softmax'"):
        load_weights(to_torch(random_variables(mixed), mixed), tiny())


def test_of_names_that_no_attention_has_nothing_is_guessed():
    given = {name.replace("scale", "scales"): array for name, array in weights().items()}
    with pytest.raises(ValueError) as error:
        load_weights(given, tiny())
    assert "these are names" not in str(error.value)
    with pytest.raises(ValueError, match="no known attention has the names of the blocks of the state dict"):
        load_weights(given, tiny(), new_attention=True)


@pytest.mark.parametrize("form", ["file", "state dict", "variables"])
def test_everything_but_the_attention_is_inherited_stream_by_stream(form, tmp_path):
    model = tiny(attn_type="toy_gated")
    old = from_torch(weights(), tiny())
    if form == "file":
        save_weights(tmp_path / "x.safetensors", old, "flatten_deit_t", OPTIONS)
        loaded, report = load_with_report(tmp_path / "x.safetensors", model, new_attention=True)
    elif form == "variables":
        loaded, report = load_with_report(old, model, new_attention=True, saved=tiny())
    else:
        loaded, report = load_with_report(weights(), model, new_attention=True)
    new = initial(model, [f"blocks_0/attn/{name}" for name in ("qkvo/kernel", "mix/kernel", "mix/bias")])
    attention, before = loaded["params"]["blocks_0"]["attn"], old["params"]["blocks_0"]["attn"]
    np.testing.assert_array_equal(attention["qkvo"]["kernel"][:, :24], before["qkv"]["kernel"])
    np.testing.assert_array_equal(attention["qkvo"]["kernel"][:, 24:], new["blocks_0/attn/qkvo/kernel"][:, 24:])
    np.testing.assert_array_equal(attention["mix"]["kernel"], new["blocks_0/attn/mix/kernel"])
    equal(attention["proj"], before["proj"])
    for name in ("norm1", "norm2", "mlp"):
        equal(loaded["params"]["blocks_1"][name], old["params"]["blocks_1"][name])
    equal(loaded["params"]["head"], old["params"]["head"])
    lines = str(report).splitlines()
    assert lines[-1] == "  note: weights of focused attention, in a model of toy_gated"
    assert len(report.made) == 8 and len(report.ignored) == 8
    if form == "state dict":
        assert "made new 8: 2 x blocks.*.attn.mix.bias, 2 x blocks.*.attn.mix.weight" in lines[-2]
        assert "2 x blocks.*.attn.qkvo.weight (o)" in lines[-2]
        assert "ignored 8: 2 x blocks.*.attn.dwc.bias" in lines[-3]


def test_streams_that_the_model_has_not_are_left_out():
    source = tiny(attn_type="toy_gated")
    variables = random_variables(source)
    loaded, report = load_with_report(to_torch(variables, source), tiny(attn_type="softmax"), new_attention=True)
    kernel = variables["params"]["blocks_1"]["attn"]["qkvo"]["kernel"]
    np.testing.assert_array_equal(loaded["params"]["blocks_1"]["attn"]["qkv"]["kernel"], kernel[:, :24])
    assert not report.made
    assert "blocks.1.attn.qkvo.weight" in report.ignored


def test_blocks_with_the_same_attention_keep_its_parameters():
    model = tiny(attn_type="focused*1+toy_gated")
    loaded = load_weights(weights(), model, new_attention=True)
    equal(loaded["params"]["blocks_0"], from_torch(weights(), tiny())["params"]["blocks_0"])
    np.testing.assert_array_equal(loaded["params"]["blocks_1"]["attn"]["mix"]["bias"], 0)


def test_names_of_the_originals_are_inherited_too():
    source = tiny(attn_type="toy_bare")
    variables = random_variables(source)
    loaded = load_weights(to_torch(variables, source), tiny(), new_attention=True)
    equal(loaded["params"]["blocks_0"]["attn"]["qkv"], variables["params"]["blocks_0"]["attn"]["qkv"])
    equal(loaded["params"]["blocks_0"]["attn"]["proj"], variables["params"]["blocks_0"]["attn"]["proj"])


def test_weights_of_the_same_attention_are_loaded_as_always():
    loaded, report = load_with_report(weights(), tiny(), new_attention=True)
    equal(loaded, from_torch(weights(), tiny()))
    assert not (report.made or report.ignored or report.notes)


def test_another_size_and_another_head_go_together_with_another_attention(tmp_path, capsys):
    saved(tmp_path / "x.safetensors", "focused", kernel_size=3)
    files = [str(tmp_path / name) for name in ("x.safetensors", "y.safetensors")]
    size = ["--image-size", "24", "32", "--num-classes", "5", "--new-head"]
    main(["convert", *files, *size, "--new-attention", "toy_gated"])
    said = capsys.readouterr().out
    assert "  resampled 1\n    pos_embed (1, 16, 8) -> (1, 48, 8)\n" in said
    assert "made new 10: head/bias, head/kernel, 2 x blocks_*/attn/mix/bias, " in said
    with safe_open(files[1], "numpy") as file:
        options = json.loads(file.metadata()["options"])
    assert options == {**OPTIONS, "attn_type": "toy_gated", "image_size": [24, 32], "num_classes": 5}
    load_weights(files[1], tiny(attn_type="toy_gated", image_size=(24, 32), num_classes=5))


def test_old_letters_still_say_the_attention(tmp_path):
    model = tiny(attn_type="focused*1+softmax")
    variables = random_variables(model)
    save_weights(tmp_path / "x.safetensors", variables, "flatten_deit_t", {**OPTIONS, "attn_type": "LS"})
    equal(load_weights(tmp_path / "x.safetensors", model), variables)
    with pytest.raises(ValueError, match=r"attn_type='LS' \(the model has 'focused'\)"):
        load_weights(tmp_path / "x.safetensors", tiny())
