"""Matrices by differentiation: of every attention against its output, of two against their equations."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flatten_jax.analysis import capture, jacobian, numerical_rank
from flatten_jax.attention import ATTENTIONS, Attention
from flatten_jax.attention.contract import heads
from flatten_jax.attention.softmax import softmax_attention
from flatten_jax.models import create_model

from . import dense
from .small import captured

TINY = dict(image_size=64, patch_size=8, embed_dim=32, num_heads=2, depth=2)


@pytest.mark.parametrize("name", sorted(name for name, cls in ATTENTIONS.items() if "v" in cls.streams))
def test_a_matrix_times_values_is_the_output(name):
    """Exactly, where it is said to be; else it says what a small change of the values does."""
    layer = captured("flatten_deit_t", 1, attn_type=name, **{**TINY, "depth": 1})[-1]
    channel, width = 5, layer.output.shape[2] // 2
    matrix = layer.effective(0, 1, channel)
    v, out = layer.streams["v"], width + channel
    place = out % v.shape[2]
    scale = np.abs(layer.output).max()
    if layer.linear:
        given = matrix @ v[0, :, place] + layer.offset(0, 1, channel)
        np.testing.assert_allclose(given, layer.output[0, :, out], atol=1e-5 * scale)
    size = 1.0 if layer.linear else 1e-2
    change = size * np.random.default_rng(1).standard_normal(v.shape[1]).astype(np.float32)
    before, after = (
        np.asarray(jacobian.output(layer.call.with_values(jnp.asarray(v).at[0, :, place].add(sign * change))))
        for sign in (-0.5, 0.5)
    )
    moved = (after - before)[0, :, out]
    np.testing.assert_allclose(matrix @ change, moved, atol=1e-5 * scale + (1 - layer.linear) * 0.02 * abs(moved).max())


class _Normed(Attention):
    """Softmax attention divided by the length of its result, which is not linear in v."""

    def __call__(self, x, site, q, k, v):
        out = _softmax(self.num_heads, q, k, v)
        return out / jnp.linalg.norm(out, axis=-1, keepdims=True)


class _Own(Attention):
    """Softmax attention of the tokens themselves, squared."""

    streams = ""

    def __call__(self, x, site):
        return _softmax(self.num_heads, x, x, x) ** 2


def _softmax(num_heads, *streams):
    return softmax_attention(*(heads(stream, num_heads) for stream in streams)).reshape(streams[0].shape)


@pytest.fixture
def others(monkeypatch):
    for cls in (_Normed, _Own):
        monkeypatch.setitem(ATTENTIONS, cls.__name__, cls)


def test_what_is_not_linear_in_its_values_says_so(others):
    assert [layer.shows for layer in captured("flatten_deit_t", attn_type="softmax/_Normed", **TINY)] == [
        "matrix",
        "derivative",
    ]


def test_without_values_there_is_the_influence_of_tokens(others):
    layer = captured("flatten_deit_t", attn_type="_Own", **TINY)[-1]
    assert layer.shows == "influence" and not layer.linear and layer.through("softmax") is None
    whole = jax.jacrev(lambda x: layer.call.attention.apply({}, x, layer.call.site)[0])(jnp.asarray(layer.call.x[1:]))
    expected = np.sqrt((whole[:, :, 0] ** 2).sum(axis=(1, 3)))
    np.testing.assert_allclose(layer.attention(slice(1, 2))[0, 0], expected, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(layer.influence(7, example=1), expected[7:8], rtol=1e-4, atol=1e-6)
    with pytest.raises(ValueError, match="_Own makes its values itself, so blocks_1/attn has no matrix: ask its `infl"):
        layer.effective(0, 0)


def test_tokens_are_not_reduced_where_keys_are(others):
    options = dict(depths=(1,), num_heads=(2,), embed_dims=(8,), mlp_ratios=(1,), la_sr_ratios="2")
    (layer,) = captured("flatten_pvt_t", 1, image_size=16, attn_type="_Own", **options)
    assert layer.places.grid == (4, 4) and layer.call.site.keys == (2, 2)
    assert layer.places.on_picture(layer.influence(5), 0).shape == (1, 4, 4)


@pytest.fixture(scope="module")
def layers():
    """Softmax, then focused attention."""
    return captured("flatten_deit_t", attn_type="softmax/focused", **TINY)


def test_rows_heads_and_means_are_those_of_the_whole(layers):
    for layer in layers:
        attention, each = dense.attention(layer), dense.branch(layer)
        np.testing.assert_allclose(layer.attention(), attention, atol=1e-6)
        np.testing.assert_allclose(layer.attention(slice(1, 2), [3, 9]), attention[1:, :, [3, 9]], atol=1e-6)
        np.testing.assert_allclose(layer.effective(1, 1), attention[1, 1] + each[16:].mean(axis=0), atol=1e-6)
        expected = np.abs(attention[1, :, 5][:, None] + each[:, 5].reshape(2, 16, -1)).mean(axis=1)
        np.testing.assert_allclose(layer.influence(5, 1), expected, atol=1e-6)


def test_options_change_what_is_shown(layers):
    focused = layers[1]
    assert focused.has_branch and not layers[0].has_branch
    plain = focused.changed(focusing_factor=1.0, use_dwc=False)
    np.testing.assert_allclose(plain.effective(0, 1, 3), dense.attention(plain)[0, 1], atol=1e-6)
    assert np.abs(plain.output - focused.output).max() > 0.1
    with pytest.raises(ValueError, match="softmax has no option use_dwc; it has none"):
        layers[0].changed(use_dwc=False)


def test_queries_and_keys_go_through_another_attention(layers):
    other = layers[1].through("softmax")
    q, k = (heads(layers[1].streams[letter], 2) for letter in "qk")
    np.testing.assert_allclose(other.attention(), dense.softmax_matrix(q, k), atol=1e-6)
    assert layers[0].through("focused") is None  # it has parameters


def test_too_much_at_once_is_refused(layers, monkeypatch):
    monkeypatch.setattr("flatten_jax.analysis.layer.LARGEST", 8000)
    with pytest.raises(ValueError, match="2 x 2 x 64 x 64 numbers are too many at once: ask some examples or tokens"):
        layers[0].attention()
    assert layers[0].attention(slice(0, 1), [1, 2]).shape == (1, 2, 2, 64)
    with pytest.raises(ValueError, match="head=2, channel=None must be within 2 heads of 16 channels"):
        layers[0].effective(0, 2)


@pytest.mark.slow
def test_the_branch_restores_the_rank():
    """DeiT-T's third block (paper, section 3.3.2): at most d = 64 without the branch, all of 196 with it."""
    model = create_model("flatten_deit_t", depth=3)
    variables = jax.jit(model.init)(jax.random.key(0, impl="rbg"), np.zeros((1, 224, 224, 3)))
    images = np.random.default_rng(0).standard_normal((1, 224, 224, 3)).astype(np.float32)
    layer = capture(model, variables, images)[2]
    ranks = numerical_rank(layer.attention()[0])
    assert ((ranks > 54) & (ranks <= 64)).all()
    for head in range(3):
        assert numerical_rank(layer.effective(0, head, channel=5 * head)) == 196
