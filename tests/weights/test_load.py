"""Weights into models: the round trip, strict matching, another image size, another number of classes."""

import logging
from pathlib import Path

import numpy as np
import pytest

import flatten_jax
from flatten_jax.models import create_model
from flatten_jax.weights import resample
from flatten_jax.weights.convert import from_torch, to_torch
from flatten_jax.weights.layout import entries, layout
from flatten_jax.weights.load import load_weights, load_with_report

from .make_fixtures import OPTIONS, weights
from .small import equal, random_variables, tiny

HERE = Path(__file__).parent


@pytest.mark.parametrize("name", ["flatten_pvt_t", "flatten_pvt_v2_b0", "flatten_swin_t", "flatten_cswin_t"])
def test_a_round_trip_through_pytorch_names_is_exact(name):
    model = flatten_jax.create_model(
        name, image_size=64, attn_type="focused,softmax,focused,softmax", depths=(1, 1, 1, 1)
    )
    variables = random_variables(model)
    state_dict = to_torch(variables, model)
    np.testing.assert_array_equal(state_dict["head.weight"], variables["params"]["head"]["kernel"].T)
    equal(from_torch(state_dict, model), variables)


def test_swin_gets_the_buffers_of_its_windows():
    model = flatten_jax.create_model("flatten_swin_t", image_size=64, window_size=8, softmax_window_size=2)
    state_dict = to_torch(random_variables(model), model)
    buffers = {name: array for name, array in state_dict.items() if name.endswith(("_index", "_mask"))}
    # Grids 16, 8, 4, 2. Masks where a second block has more than one window: linear blocks (LL) have them too.
    masked = ["layers.0.blocks.1", *(f"layers.2.blocks.{i}" for i in (1, 3, 5))]
    indexed = [*(f"layers.2.blocks.{i}" for i in range(6)), "layers.3.blocks.0", "layers.3.blocks.1"]
    assert sorted(buffers) == sorted(
        [f"{block}.attn_mask" for block in masked] + [f"{block}.attn.relative_position_index" for block in indexed]
    )
    index = [[4, 3, 1, 0], [5, 4, 2, 1], [7, 6, 4, 3], [8, 7, 5, 4]]
    np.testing.assert_array_equal(buffers["layers.3.blocks.0.attn.relative_position_index"], index)
    assert buffers["layers.3.blocks.0.attn.relative_position_index"].dtype == np.int64
    mask = buffers["layers.2.blocks.1.attn_mask"]
    assert (mask.shape, mask.dtype) == ((4, 4, 4), np.float32)
    np.testing.assert_array_equal(mask[0], 0)
    np.testing.assert_array_equal(mask[1], -100 * (np.indices((4, 4)).sum(0) % 2))  # two columns from either side


def test_to_torch_wants_the_variables_of_the_model():
    model = tiny()
    variables = from_torch(weights(), model)
    del variables["params"]["norm"]["scale"]
    with pytest.raises(ValueError, match=r"not those of this DeiT:\n  missing \(1\): norm/scale"):
        to_torch(variables, model)


@pytest.mark.parametrize("name", ["release.pth", "release_legacy.pth", "timm.pth", "half.pth", "bfloat16.safetensors"])
def test_any_file_gives_the_same_variables(name):
    equal(load_weights(HERE / name, tiny()), from_torch(weights(), tiny()))


def test_ema_is_loaded_when_asked():
    equal(load_weights(HERE / "release.pth", tiny(), ema=True), from_torch(weights("ema"), tiny()))


def test_all_that_is_wrong_is_listed():
    given = weights()
    del given["norm.bias"], given["blocks.1.attn.scale"]
    given["extra.weight"] = np.zeros(2, np.float32)
    given["blocks.0.mlp.fc1.bias"] = np.zeros(9, np.float32)
    with pytest.raises(ValueError) as error:
        load_weights(given, tiny())
    assert str(error.value) == (
        "the state dict does not fit DeiT of 16 x 16 pixels and 3 classes:\n"
        "  missing (2): blocks.1.attn.scale, norm.bias\n"
        "  unexpected (1): extra.weight\n"
        "  misshapen (1): blocks.0.mlp.fc1.bias: (9,) given, (16,) expected"
    )


@pytest.mark.parametrize("load", [load_weights, from_torch])
def test_weights_of_another_model_are_named_and_few_entries_are_listed(load):
    given = {name: np.zeros(shape, np.float32) for name, shape in entries(layout(create_model("deit_t"))).items()}
    with pytest.raises(ValueError) as error:
        load(given, tiny())
    first, *lists = str(error.value).splitlines()
    assert first.endswith("; the weights are of a deit_t: create_model('deit_t') (--model deit_t) takes them:")
    assert "unexpected (121): " in lists[1] and lists[1].endswith(" and 115 more")
    assert len(str(error.value)) < 1500


def test_integers_are_no_weights():
    given = weights()
    given["norm.bias"] = np.zeros(8, np.int64)
    with pytest.raises(ValueError, match=r"not floating-point: norm\.bias \(int64\)"):
        load_weights(given, tiny())


def test_index_and_mask_buffers_are_ignored_and_said():
    given = {**weights(), "blocks.0.attn.relative_position_index": np.zeros((4, 4), np.int64)}
    given["blocks.0.attn_mask"] = np.zeros((4, 4), np.float32)
    variables, report = load_with_report(given, tiny())
    equal(variables, from_torch(given, tiny()))
    assert "ignored 2: relative_position_index, attn_mask" in str(report)


def test_another_number_of_classes_needs_a_word():
    model = tiny(num_classes=5)
    with pytest.raises(ValueError) as error:
        load_weights(HERE / "timm.pth", model)
    assert "misshapen (2): head.bias: (3,) given, (5,) expected, head.weight: (3, 8) given, (5, 8)" in str(error.value)
    assert str(error.value).endswith(
        "the weights have 3 classes, the model 5: new_head=True (--new-head, of main.py "
        "--config.init_new_head=True) makes a new head and keeps the rest, "
        "create_model(..., num_classes=3) takes theirs"
    )


def test_a_new_head_is_the_models_own_and_always_the_same():
    model = tiny(num_classes=5)
    variables, report = load_with_report(HERE / "timm.pth", model, new_head=True)
    head = variables["params"].pop("head")
    assert head["kernel"].shape == (8, 5)
    assert 0.005 < head["kernel"].std() < 0.05  # normal(0, 0.02), the model's own initial values
    np.testing.assert_array_equal(head["bias"], 0)
    equal(load_weights(HERE / "timm.pth", model, new_head=True)["params"]["head"], head)
    kept = from_torch(weights(), tiny())["params"]
    del kept["head"]
    equal(variables["params"], kept)
    assert report.made == ("head.bias", "head.weight")
    assert "ignored 2: head.bias, head.weight" in str(report)
    assert "made new 2: head.bias, head.weight" in str(report)


def test_another_image_size_is_fitted_and_said():
    model = tiny(image_size=(24, 32))
    variables, report = load_with_report(HERE / "release.pth", model)
    encoding = weights()["blocks.1.attn.positional_encoding"]
    np.testing.assert_array_equal(
        variables["params"]["blocks_1"]["attn"]["positional_encoding"],
        resample.resample_tokens(encoding, (4, 4), (6, 8)),
    )
    assert report.resampled.keys() == {"pos_embed", *(f"blocks.{i}.attn.positional_encoding" for i in range(2))}
    assert str(report).splitlines()[:5] == [
        f"{HERE / 'release.pth'} (model) -> DeiT of 24 x 32 pixels and 3 classes",
        f"  matched {len(weights()) - 3}",
        "  resampled 3",
        "    2 x positional_encoding (1, 16, 8) -> (1, 48, 8)",
        "    pos_embed (1, 16, 8) -> (1, 48, 8)",
    ]
    with pytest.raises(ValueError, match=r"misshapen \(3\): .*pos_embed: \(1, 16, 8\) given"):
        load_weights(HERE / "release.pth", model, resample=False)


def test_the_class_token_of_deit_stays_when_the_grid_grows():
    options = {**OPTIONS, "depth": 1}
    small, large = (flatten_jax.create_model("deit_t", **{**options, "image_size": n}) for n in (16, 32))
    variables = random_variables(small)
    before = variables["params"]["pos_embed"]
    after = load_weights(to_torch(variables, small), large)["params"]["pos_embed"]
    np.testing.assert_array_equal(after, resample.resample_tokens(before, (4, 4), (8, 8), prefix=1))


def test_a_backbone_leaves_head_and_final_norm_and_makes_its_own_norms():
    model = tiny(features_only=True, feature_norm=True, out_indices=(1,))
    variables, report = load_with_report(HERE / "timm.pth", model)
    kept = from_torch(weights(), tiny())["params"]
    del kept["head"], kept["norm"]
    (made,) = variables["params"].keys() - kept.keys()
    np.testing.assert_array_equal(variables["params"].pop(made)["scale"], 1)
    equal(variables["params"], kept)
    assert report.ignored == ("norm.weight", "norm.bias", "head.weight", "head.bias")
    assert report.made == (f"{made}.bias", f"{made}.weight")
    _, report = load_with_report(HERE / "timm.pth", tiny(num_classes=0))
    assert report.ignored == ("head.weight", "head.bias")


def test_swin_windows_are_fitted():
    small, large = (
        flatten_jax.create_model("swin_t", image_size=64, depths=(2, 1, 1, 1), softmax_window_size=n) for n in (4, 8)
    )
    state_dict = to_torch(random_variables(small), small)
    variables, report = load_with_report(state_dict, large)
    table = "layers_0", "blocks_1", "attn", "relative_position_bias_table"
    fitted = variables["params"]
    for key in table:
        fitted = fitted[key]
    given = state_dict["layers.0.blocks.1.attn.relative_position_bias_table"]
    np.testing.assert_array_equal(fitted, resample.resample_table(given, (4, 4), (8, 8)))
    assert "2 x relative_position_bias_table (49, 3) -> (225, 3)" in str(report)


def test_the_log_says_what_is_unusual(caplog):
    caplog.set_level(logging.INFO, "flatten_jax")
    load_weights(HERE / "timm.pth", tiny())
    load_weights(HERE / "timm.pth", tiny(image_size=32))
    load_weights(HERE / "release.pth", tiny(focusing_factor=4))
    assert [record.levelname for record in caplog.records] == ["INFO", "WARNING", "WARNING"]
    assert "note: the file holds weights and their moving average" in caplog.records[2].message
    assert "FOCUSING_FACTOR 3, the model has focusing_factor=4" in caplog.records[2].message


def test_variables_are_taken_as_they_are():
    variables = from_torch(weights(), tiny())
    equal(load_weights(variables, tiny()), variables)
    with pytest.raises(ValueError, match="variables are taken as they are"):
        load_weights(variables, tiny(), ema=True)
