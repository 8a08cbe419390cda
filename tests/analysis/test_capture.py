"""Every layer's matrices against what the layer itself gave, in all families."""

import jax
import numpy as np
import pytest

from flatten_jax.analysis import capture, distance, numerical_rank
from flatten_jax.attention import MIXERS
from flatten_jax.models import abstract_variables, create_model

# Two stages, the second one of softmax in two blocks.
SMALL = dict(num_classes=10, depths=(1, 2), num_heads=(1, 2), attn_type="LS")
PVT = dict(SMALL, image_size=32, embed_dims=(4, 8), mlp_ratios=(1, 1), sr_ratios=(4, 2))
CASES = {
    "deit": ("flatten_deit_t", dict(image_size=32, patch_size=8, embed_dim=12, depth=2, remat=True)),
    "deit_class_token": ("deit_t", dict(image_size=32, patch_size=8, embed_dim=12, depth=1)),
    "pvt_reduced": ("flatten_pvt_t", dict(PVT, la_sr_ratios="21")),
    "pvt_v2_no_branch": ("flatten_pvt_v2_b0", dict(PVT, la_sr_ratios="11", use_dwc=False)),
    "swin_shifted": ("flatten_swin_t", dict(SMALL, image_size=40, embed_dim=4, softmax_window_size=3)),
    "swin_windows": ("flatten_swin_t", dict(SMALL, image_size=32, embed_dim=4, attn_type="LL", window_size=3)),
    "cswin_stripes": (
        "flatten_cswin_t",
        dict(
            SMALL,
            image_size=40,
            embed_dim=4,
            depths=(1, 1, 1),
            num_heads=(1, 2, 2),
            split_size=(1, 2, 0),
            attn_type="LSS",
        ),
    ),
}


@pytest.fixture(scope="module")
def layers():
    """case -> its layers; each is computed once, and without a compiler."""
    made = {}

    def get(case):
        if case not in made:
            name, options = CASES[case]
            model = create_model(name, **options)
            rng = np.random.default_rng(0)  # zeros and ones, as initialised, would hide much
            variables = jax.tree.map(
                lambda x: (0.2 * rng.standard_normal(x.shape)).astype(np.float32), abstract_variables(model)
            )
            images = rng.standard_normal((2, *model.image_size, 3)).astype(np.float32)
            made[case] = capture(model, variables, images)
        return made[case]

    return get


@pytest.mark.parametrize("case", CASES)
def test_the_effective_matrix_times_the_values_is_the_output(layers, case):
    for layer in layers(case):
        d = layer.v.shape[2] // layer.num_heads
        attention = layer.attention()
        branch = np.zeros((layer.num_heads, d, 1, 1))
        if layer.has_branch:
            branch = np.array([[layer.branch(head, c) for c in range(d)] for head in range(layer.num_heads)])
        v = layer.v.reshape(*layer.v.shape[:2], layer.num_heads, d)
        out = np.einsum("whcnm,wmhc->wnhc", attention[:, :, None] + branch, v) + layer.offset
        scale = np.abs(layer.output).max()
        np.testing.assert_allclose(out.reshape(layer.output.shape), layer.output, atol=1e-5 * scale, err_msg=layer.name)
        last = len(layer.v) - 1
        np.testing.assert_allclose(layer.effective(last, 0, d - 1), attention[last, 0] + branch[0, d - 1], atol=1e-12)


def test_layers_are_named_in_order(layers):
    assert [(x.block, x.name, x.kind) for x in layers("cswin_stripes")] == [
        (0, "stage1_0/attns_0", "focused"),
        (1, "stage2_0/attns_0", "softmax"),
        (1, "stage2_0/attns_1", "softmax"),
        (2, "stage3_0/attns_0", "softmax"),
    ]


def test_places_follow_padding_and_shift(layers):
    """A grid of 5 x 5 in windows of 3, shifted by 1: what Swin's mask keeps apart is apart on the picture."""
    straight, shifted = layers("swin_shifted")[1:]
    np.testing.assert_array_equal(straight.places[3, [0, 8]], [[3, 3], [5, 5]])
    np.testing.assert_array_equal(shifted.places[0, [0, 8]], [[1, 1], [3, 3]])
    np.testing.assert_array_equal(shifted.places[3, [0, 8]], [[4, 4], [0, 0]])  # wrapped around
    apart = np.abs(shifted.places[:, :, None] - shifted.places[:, None]).max(axis=-1)
    attends = shifted.attention()[:, 0] > 1e-30
    np.testing.assert_array_equal(attends, np.tile(apart < 3, (2, 1, 1)))


def test_stripes_lie_across(layers):
    vertical, horizontal = (x.places for x in layers("cswin_stripes")[1:3])
    assert (np.ptp(vertical, axis=1) == [5, 1]).all() and (np.ptp(horizontal, axis=1) == [1, 5]).all()


def test_a_query_is_found_and_its_map_lies_around_it(layers):
    layer = layers("swin_shifted")[2]
    example, token = layer.locate((4, 2), picture=1)
    np.testing.assert_array_equal(layer.places[example % 4, token], [4, 2])
    chart = layer.on_picture(layer.influence(token, example), example)
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
    assert (layer.grid, layer.k.shape[1], layer.key_size) == ((8, 8), 16, 2)
    np.testing.assert_array_equal(layer.key_places[0, [0, 5]], [[0.5, 0.5], [2.5, 2.5]])
    chart = layer.on_picture(np.arange(16), 0)
    np.testing.assert_array_equal(chart[2:4, 2:4], 5)
    assert layer.branch(0, tokens=[9]).shape == (1, 16)


def test_a_class_token_has_no_place(layers):
    (layer,) = layers("deit_class_token")
    assert layer.locate((0, 0)) == (0, 1)
    weights = np.zeros(17)
    weights[[0, 1]] = 0.6, 0.4
    np.testing.assert_array_equal(layer.on_picture(weights, 0).ravel(), [0.4] + 15 * [0])
    apart = distance(layer.attention(), layer.places[0], layer.key_places[0])
    np.testing.assert_array_equal(np.isnan(apart).any(axis=(0, 1)), [True] + 16 * [False])


def test_influence_is_the_mean_over_channels_of_the_effective_matrix(layers):
    layer = layers("deit")[1]
    expected = np.mean([np.abs(layer.effective(1, 2, c)[5]) for c in range(4)], axis=0)
    np.testing.assert_allclose(layer.influence(5, 1, "effective")[2], expected, rtol=1e-12)
    np.testing.assert_array_equal(layer.influence(5, 1, "linear"), layer.attention("linear")[1, :, 5])


def test_one_example_is_the_same_as_among_all(layers):
    for layer in (layers("swin_shifted")[2], layers("deit")[0]):
        np.testing.assert_allclose(layer.attention(examples=slice(1, 2)), layer.attention()[1:2], rtol=1e-12)


def test_the_branch_restores_the_rank():
    """DeiT-T's third block (paper, section 3.3.2): at most d = 64 without the branch, all of 196 with it."""
    model = create_model("flatten_deit_t", depth=3)
    rng = np.random.default_rng(0)
    variables = jax.jit(model.init)(jax.random.key(0, impl="rbg"), np.zeros((1, 224, 224, 3)))
    layer = capture(model, variables, rng.standard_normal((1, 224, 224, 3)).astype(np.float32))[2]
    ranks = numerical_rank(layer.attention()[0])
    assert ((ranks > 54) & (ranks <= 64)).all()
    for head in range(3):
        assert numerical_rank(layer.effective(0, head, channel=5 * head)) == 196


def test_an_attention_without_a_known_matrix_is_refused(monkeypatch):
    class Other(MIXERS["L"]):
        pass

    monkeypatch.setitem(MIXERS, "O", Other)
    model = create_model("flatten_deit_t", image_size=32, depth=1, embed_dim=12, attn_type="O")
    variables = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), abstract_variables(model))
    with pytest.raises(ValueError, match="the matrix of Other in block 0 is not known; only those of SoftmaxMixer"):
        capture(model, variables, np.zeros((1, 32, 32, 3)))
