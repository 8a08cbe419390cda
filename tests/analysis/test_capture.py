"""Every layer's matrices against what the layer itself gave and against their equations, in all families."""

import numpy as np
import pytest

from flatten_jax.analysis import distance

from . import dense
from .small import captured

# Two stages, the second one of softmax in two blocks.
SMALL = dict(num_classes=10, depths=(1, 2), num_heads=(1, 2), attn_type="LS")
PVT = dict(SMALL, image_size=32, embed_dims=(4, 8), mlp_ratios=(1, 1), sr_ratios=(4, 2))
STRIPES = dict(image_size=40, embed_dim=4, depths=(1, 1, 1), num_heads=(1, 2, 2), split_size=(1, 2, 0))
CASES = {
    "deit": ("flatten_deit_t", dict(image_size=32, patch_size=8, embed_dim=12, depth=2, remat=True)),
    "deit_class_token": ("deit_t", dict(image_size=32, patch_size=8, embed_dim=12, depth=1)),
    "deit_bfloat16": ("flatten_deit_t", dict(image_size=32, patch_size=8, embed_dim=12, depth=1, dtype="bfloat16")),
    "pvt_reduced": ("flatten_pvt_t", dict(PVT, la_sr_ratios="21")),
    "pvt_v2_no_branch": ("flatten_pvt_v2_b0", dict(PVT, la_sr_ratios="11", use_dwc=False)),
    "swin_shifted": ("flatten_swin_t", dict(SMALL, image_size=40, embed_dim=4, softmax_window_size=3)),
    "swin_windows": ("flatten_swin_t", dict(SMALL, image_size=32, embed_dim=4, attn_type="LL", window_size=3)),
    "cswin_stripes": ("flatten_cswin_t", dict(SMALL, **STRIPES) | dict(attn_type="LSS")),
}


@pytest.fixture(scope="module")
def layers():
    """case -> its layers; each is computed once."""
    made = {}

    def get(case):
        if case not in made:
            name, options = CASES[case]
            made[case] = captured(name, **options)
        return made[case]

    return get


@pytest.mark.parametrize("case", CASES)
def test_matrices_are_those_of_the_equations_and_give_the_output(layers, case):
    for layer in layers(case):
        attention, branch, last = dense.attention(layer), dense.branch(layer), len(layer.output) - 1
        head, width = layer.num_heads - 1, layer.output.shape[2] // layer.num_heads
        np.testing.assert_allclose(layer.attention(), attention, atol=2e-6, err_msg=layer.name)
        channel = layer.output.shape[2] - 1
        matrix = layer.effective(last, head, width - 1)
        scale = np.abs(matrix).max()
        np.testing.assert_allclose(
            matrix, attention[last, head] + branch[channel], atol=2e-6 * scale, err_msg=layer.name
        )
        out = matrix @ layer.streams["v"][last, :, channel] + layer.offset(last, head, width - 1)
        scale = (1e-2 if case == "deit_bfloat16" else 1e-5) * np.abs(layer.output).max()
        np.testing.assert_allclose(out, layer.output[last, :, channel], atol=scale, err_msg=layer.name)


def test_layers_are_named_in_order(layers):
    assert [(x.block, x.name, x.kind) for x in layers("cswin_stripes")] == [
        (0, "stage1_0/attns_0", "focused"),
        (1, "stage2_0/attns_0", "softmax"),
        (1, "stage2_0/attns_1", "softmax"),
        (2, "stage3_0/attns_0", "softmax"),
    ]
    assert all(x.call.local is not None for x in layers("cswin_stripes"))  # LePE


def test_places_follow_padding_and_shift(layers):
    """A grid of 5 x 5 in windows of 3, shifted by 1: what Swin's mask keeps apart is apart on the picture."""
    straight, shifted = (x.places.queries for x in layers("swin_shifted")[1:])
    np.testing.assert_array_equal(straight[3, [0, 8]], [[3, 3], [5, 5]])
    np.testing.assert_array_equal(shifted[0, [0, 8]], [[1, 1], [3, 3]])
    np.testing.assert_array_equal(shifted[3, [0, 8]], [[4, 4], [0, 0]])  # wrapped around
    apart = np.abs(shifted[:, :, None] - shifted[:, None]).max(axis=-1)
    attends = layers("swin_shifted")[2].attention()[:, 0] > 1e-30
    np.testing.assert_array_equal(attends, np.tile(apart < 3, (2, 1, 1)))


def test_stripes_lie_across(layers):
    vertical, horizontal = (x.places.queries for x in layers("cswin_stripes")[1:3])
    assert (np.ptp(vertical, axis=1) == [5, 1]).all() and (np.ptp(horizontal, axis=1) == [1, 5]).all()


def test_a_query_is_found_and_its_map_lies_around_it(layers):
    layer = layers("swin_shifted")[2]
    example, token = layer.locate((4, 2), picture=1)
    np.testing.assert_array_equal(layer.places.queries[example % 4, token], [4, 2])
    chart = layer.places.on_picture(layer.influence(token, example), example)
    assert chart.shape == (layer.num_heads, 5, 5)
    np.testing.assert_array_equal(
        (chart > 1e-30).any(axis=0), [[i > 3 and 1 <= j <= 3 for j in range(5)] for i in range(5)]
    )
    with pytest.raises(ValueError, match=r"query=\(5, 0\) is not on the grid of 5 x 5"):
        layer.locate((5, 0))
    with pytest.raises(ValueError, match="picture=2: 2 were captured"):
        layer.locate((0, 0), picture=2)


def test_a_reduced_key_covers_its_patch(layers):
    layer = layers("pvt_reduced")[0]
    assert (layer.places.grid, layer.streams["v"].shape[1], layer.places.key_size) == ((8, 8), 16, 2)
    np.testing.assert_array_equal(layer.places.keys[0, [0, 5]], [[0.5, 0.5], [2.5, 2.5]])
    chart = layer.places.on_picture(np.arange(16), 0)
    np.testing.assert_array_equal(chart[2:4, 2:4], 5)


def test_a_class_token_has_no_place(layers):
    (layer,) = layers("deit_class_token")
    assert layer.locate((0, 0)) == (0, 1)
    weights = np.zeros(17)
    weights[[0, 1]] = 0.6, 0.4
    np.testing.assert_array_equal(layer.places.on_picture(weights, 0).ravel(), [0.4] + 15 * [0])
    apart = distance(layer.attention(), layer.places.queries[0], layer.places.keys[0])
    np.testing.assert_array_equal(np.isnan(apart).any(axis=(0, 1)), [True] + 16 * [False])
