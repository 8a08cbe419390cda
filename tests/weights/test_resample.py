"""Resampling against PyTorch's own numbers, and what an attention's parameters become at another image size."""

from pathlib import Path

import numpy as np
import pytest

import flatten_jax
from flatten_jax.attention import Site, Sized
from flatten_jax.weights import resample
from flatten_jax.weights.convert import to_torch
from flatten_jax.weights.layout import Row
from flatten_jax.weights.load import load_weights, load_with_report

from . import toys
from .small import random_variables

FROZEN = Path(__file__).parent / "bicubic.npz"


@pytest.mark.parametrize("size", [(7, 7), (3, 3), (5, 8), (4, 9)])
def test_bicubic_is_that_of_pytorch(size):
    frozen = np.load(FROZEN)
    ours = resample.bicubic(frozen["x"][0].transpose(1, 2, 0), size)
    np.testing.assert_allclose(ours.transpose(2, 0, 1), frozen["to_{}x{}".format(*size)][0], atol=1e-12)


def test_tokens_are_row_major_and_the_class_token_stays():
    x = np.random.default_rng(0).standard_normal((1, 1 + 6, 2)).astype(np.float32)
    y = resample.resample_tokens(x, (2, 3), (4, 5), prefix=1)
    np.testing.assert_array_equal(y[:, 0], x[:, 0])
    np.testing.assert_array_equal(y[0, 1:].reshape(4, 5, 2), resample.bicubic(x[0, 1:].reshape(2, 3, 2), (4, 5)))


def test_bias_tables_are_resampled_on_the_grid_of_offsets():
    x = np.random.default_rng(0).standard_normal((13 * 13, 3))
    y = resample.resample_table(x, (7, 7), (12, 10))
    np.testing.assert_array_equal(y.reshape(23, 19, 3), resample.bicubic(x.reshape(13, 13, 3), (23, 19)))


def ramp(height, width):
    """Tokens that hold their own row and column: a bicubic fit keeps such a ramp, away from the edge."""
    rows, columns = np.meshgrid(np.arange(height) + 0.5, np.arange(width) + 0.5, indexing="ij")
    return np.stack([rows / height, columns / width], axis=-1).reshape(1, height * width, 2)


def row(shape, sized, grid, leaf="encoding"):
    path = ("blocks_0", "attn", leaf)
    return Row("params", path, shape, ".".join(path), tuple(range(len(shape))), sized=sized, site=Site(grid))


@pytest.mark.parametrize(
    ("source", "tokens"),
    [
        ((8, 8), 64),  # a square number of tokens is a square, whatever the new shape
        ((8, 12), 96),  # otherwise the shape of the new grid
    ],
)
def test_an_unknown_source_grid_is_square_or_of_the_new_shape(source, tokens):
    x = ramp(*source)
    assert x.shape[1] == tokens
    y = resample.fit(row((1, 384, 2), Sized(axis=1), (16, 24)), x, [])
    inner = (slice(None), slice(4, 12), slice(4, 20))
    np.testing.assert_allclose(y.reshape(1, 16, 24, 2)[inner], ramp(16, 24).reshape(1, 16, 24, 2)[inner], atol=0.01)


def test_what_cannot_be_on_a_grid_or_is_none_is_left_alone():
    sized = row((1, 16, 2), Sized(axis=1), (4, 4))
    assert resample.fit(sized, np.zeros((1, 7, 2)), []) is None
    assert resample.fit(sized, np.zeros((1, 9, 3)), []) is None
    assert resample.fit(row((1, 16, 2), None, (4, 4)), np.zeros((1, 9, 2)), []) is None


def deit(attn_type, image_size, **options):
    size = dict(embed_dim=8, depth=1, num_heads=2, patch_size=4, mlp_ratio=1, num_classes=0)
    return flatten_jax.create_model("deit_t", attn_type=attn_type, image_size=image_size, **{**size, **options})


def linear(x, count):
    """Half-pixel linear interpolation along the first axis, edges held: numpy's own."""
    old, new = ((np.arange(n) + 0.5) / n for n in (len(x), count))
    flat = x.reshape(len(x), -1)
    return np.stack([np.interp(new, old, column) for column in flat.T], axis=1).reshape(count, *x.shape[1:])


def test_an_attention_says_how_each_parameter_belongs_to_the_grid(monkeypatch):
    toys.register(monkeypatch)
    small, large = deit("toy_tied", (16, 16)), deit("toy_tied", (24, 32))
    before = random_variables(small)["params"]
    old = before["blocks_0"]["attn"]
    state_dict = to_torch({"params": before}, small)
    assert state_dict["blocks.0.attn.mixed.weight"].shape == (2, 17)
    after = load_weights(state_dict, large)["params"]
    new = after["blocks_0"]["attn"]

    def on_grid(x):  # (17, C) -> (49, C), the class token as it was
        return np.concatenate([x[:1], resample.bicubic(x[1:].reshape(4, 4, -1), (6, 8)).reshape(48, -1)])

    def near(a, b):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)

    near(after["pos_embed"][0], on_grid(before["pos_embed"][0]))
    near(new["tokens"][0].T, on_grid(old["tokens"][0].T))
    near(new["keys"][0], on_grid(old["keys"][0]))
    near(new["rows"][0], linear(old["rows"][0], 6))
    near(new["columns"], linear(old["columns"], 8))
    share = np.where(np.arange(49) == 0, 1, 16 / 48)[:, None]  # a third of each of three times as many tokens
    near(new["sums"], on_grid(old["sums"]) * share)
    near(new["mixed"]["kernel"], on_grid(old["mixed"]["kernel"]) * share)
    np.testing.assert_array_equal(new["mixed"]["bias"], old["mixed"]["bias"])


def test_an_option_is_not_taken_for_an_image_size(monkeypatch):
    toys.register(monkeypatch)
    state_dict = to_torch(random_variables(deit("toy_tied", (16, 16), slots=4)), deit("toy_tied", (16, 16), slots=4))
    with pytest.raises(ValueError, match=r"misshapen \(1\): blocks\.0\.attn\.tokens: \(1, 4, 17\) given, \(1, 3, 17\)"):
        load_weights(state_dict, deit("toy_tied", (16, 16)))


def test_a_parameter_of_one_grid_is_refused_at_another(monkeypatch):
    toys.register(monkeypatch)
    variables = random_variables(deit("toy_fixed", (16, 16)))
    state_dict = to_torch(variables, deit("toy_fixed", (16, 16)))
    sentence = (
        "blocks.0.attn.table belongs to one grid{}, and cannot be made to fit 4 x 8: give create_model the image_size"
    )
    with pytest.raises(ValueError, match=sentence.format("")):
        load_weights(state_dict, deit("toy_fixed", (16, 32)))
    with pytest.raises(ValueError, match=sentence.format(" of 4 x 4")):
        load_with_report(variables, deit("toy_fixed", (16, 32)), saved=deit("toy_fixed", (16, 16)))


def test_an_equal_number_of_tokens_on_another_grid_is_another_size():
    # Nothing in a shape shows that rows and columns changed places; a saved model does.
    wide, high = (deit("focused", size, class_token=False) for size in ((16, 36), (36, 16)))
    variables = random_variables(wide)
    loaded, report = load_with_report(variables, high, saved=wide)
    assert report.resampled.keys() == {"pos_embed", "blocks_0/attn/positional_encoding"}
    np.testing.assert_array_equal(
        loaded["params"]["pos_embed"], resample.resample_tokens(variables["params"]["pos_embed"], (4, 9), (9, 4))
    )


AGENT_AXES = {"ah_bias": 3, "aw_bias": 4, "ha_bias": 2, "wa_bias": 3}


@pytest.mark.parametrize(
    ("name", "options", "fitted"),
    [
        ("agent_deit_t", dict(depth=1, embed_dim=12), {"pos_embed", *AGENT_AXES}),
        (
            "pola_pvt_t",
            dict(embed_dims=(8, 16, 20, 16)),
            {*(f"pos_embed{i}" for i in (1, 2, 3, 4)), "positional_encoding"},
        ),
        ("agent_swin_t", dict(embed_dim=12), {*AGENT_AXES, "relative_position_bias_table"}),
    ],
)
def test_whole_models_are_fitted_as_their_originals_are(name, options, fitted):
    """Agent's biases of rows and columns linearly along their axis, positions and tables bicubic, and nothing else."""
    if "depth" not in options:
        options["depths"] = (1, 1, 1, 1)
    small, large = (flatten_jax.create_model(name, image_size=n, num_classes=0, **options) for n in (64, 96))
    before = to_torch(random_variables(small), small)
    variables, report = load_with_report(before, large)
    after = to_torch(variables, large)
    assert {entry.rpartition(".")[2] for entry in report.resampled} == fitted
    for entry, (_, shape) in report.resampled.items():
        axis = AGENT_AXES.get(entry.rpartition(".")[2])
        if axis is not None:
            expected = np.moveaxis(linear(np.moveaxis(before[entry], axis, 0), shape[axis]), 0, axis)
            np.testing.assert_allclose(after[entry], expected, rtol=1e-5, atol=1e-6)
    if name == "agent_deit_t":
        np.testing.assert_array_equal(
            after["pos_embed"], resample.resample_tokens(before["pos_embed"], (4, 4), (6, 6), prefix=1)
        )
    for entry in report.matched:
        np.testing.assert_array_equal(before[entry], after[entry])
