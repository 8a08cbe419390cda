"""Resampling against PyTorch's own numbers, and the grids that encodings lie on."""

from pathlib import Path

import numpy as np
import pytest

from flatten_jax import create_model
from flatten_jax.weights import resample


@pytest.mark.parametrize("size", [(7, 7), (3, 3), (5, 8), (4, 9)])
def test_bicubic_is_that_of_pytorch(size):
    frozen = np.load(Path(__file__).parent / "bicubic.npz")
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


def test_the_model_says_on_which_grid_its_keys_lie():
    model = create_model("flatten_pvt_t", image_size=(64, 96), attn_type="LSLL", la_sr_ratios="2111", remat=True)
    grids = resample.token_grids(model)
    assert grids[("block1_1", "attn")] == {"grid": (16, 24), "key_grid": (8, 12)}
    assert grids[("block2_0", "attn")] == {"grid": (8, 12), "key_grid": (2, 3)}
    assert grids[("block4_0", "attn")] == {"grid": (2, 3), "key_grid": (2, 3)}


def ramp(height, width, channels=2):
    """Tokens that hold their own row and column: a bicubic fit keeps such a ramp, away from the edge."""
    rows, columns = np.meshgrid(np.arange(height) + 0.5, np.arange(width) + 0.5, indexing="ij")
    return np.stack([rows / height, columns / width], axis=-1).reshape(1, height * width, channels)


@pytest.mark.parametrize(
    ("source", "tokens"),
    [
        ((8, 8), 64),  # a square number of tokens is a square, whatever the new shape
        ((8, 12), 96),  # otherwise the shape of the new grid
    ],
)
def test_an_unknown_source_grid_is_square_or_of_the_new_shape(source, tokens):
    grids = {("blocks_0", "attn"): {"grid": (16, 24), "key_grid": (16, 24)}}
    path = ("blocks_0", "attn", "positional_encoding")
    x = ramp(*source)
    assert x.shape[1] == tokens
    y = resample.fit(path, x, (1, 384, 2), grids)
    inner = (slice(None), slice(4, 12), slice(4, 20))
    np.testing.assert_allclose(y.reshape(1, 16, 24, 2)[inner], ramp(16, 24).reshape(1, 16, 24, 2)[inner], atol=0.01)


def test_what_cannot_be_on_a_grid_or_is_none_is_left_alone():
    grids = {("blocks_0", "attn"): {"grid": (4, 4), "key_grid": (4, 4)}}
    x = np.zeros((1, 7, 2))
    assert resample.fit(("blocks_0", "attn", "positional_encoding"), x, (1, 16, 2), grids) is None
    assert resample.fit(("blocks_0", "attn", "positional_encoding"), np.zeros((1, 9, 3)), (1, 16, 2), grids) is None
    assert resample.fit(("blocks_0", "attn", "scale"), x, (1, 16, 2), grids) is None
