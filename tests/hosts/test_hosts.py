"""Windows, stripes, and the rule that any attention fits any host."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flatten_jax import create_model
from flatten_jax.attention import ATTENTIONS, Attention, Site
from flatten_jax.hosts import ReducedAttention, StripeAttention, WindowAttention
from flatten_jax.hosts.grids import Windows, pad_to_windows, partition, relative_position_index, unpartition


def test_a_window_holds_neighbours_and_goes_back():
    x = jnp.arange(2 * 4 * 6).reshape(2, 4, 6, 1)
    windows = partition(x, (2, 3))
    np.testing.assert_array_equal(windows[:2, :, 0], [[0, 1, 2, 6, 7, 8], [3, 4, 5, 9, 10, 11]])
    np.testing.assert_array_equal(windows[4:], partition(x[1:], (2, 3)))
    np.testing.assert_array_equal(unpartition(windows, (2, 3), (4, 6)), x)


def test_padding_is_at_the_right_and_the_bottom():
    x = jnp.ones((1, 5, 4, 1))
    padded = pad_to_windows(x, (3, 4))
    assert padded.shape == (1, 6, 4, 1)
    assert not padded[:, 5].any() and (padded[:, :5] == 1).all()
    assert pad_to_windows(x, (5, 2)) is x


def test_relative_positions_have_one_row_each():
    index = relative_position_index((2, 3))
    assert index.shape == (6, 6)
    assert (np.diag(index) == index[0, 0]).all()
    assert index[0, 1] == index[4, 5] != index[1, 0]  # one column to the right, anywhere; not to the left
    assert index[0, 3] == index[2, 5]  # one row down
    assert np.unique(index).tolist() == list(range(15))


def test_the_mask_keeps_apart_what_was_wrapped_around():
    mask = Windows((4, 4), (2, 2), (1, 1)).mask()
    np.testing.assert_array_equal(mask[0], np.zeros((4, 4)))  # untouched by the borders
    np.testing.assert_array_equal(mask[3], -100 * (1 - np.eye(4)))  # the corner: four strangers
    np.testing.assert_array_equal(mask[1][0], [0, -100, 0, -100])  # right border: columns apart, rows together
    one_axis = Windows((2, 4), (2, 2), (0, 1)).mask()
    np.testing.assert_array_equal(one_axis[1], mask[1])


class Gathered(Attention):
    """Gives each token the mean of the values it can see."""

    def __call__(self, x, site, q, k, v):
        return jnp.broadcast_to(v.mean(axis=1, keepdims=True), q.shape)


def seen(host, grid, monkeypatch):
    """(N, N): whether the result at a token depends on another token."""
    monkeypatch.setitem(ATTENTIONS, "gathered", Gathered)
    x = jax.random.normal(jax.random.key(0), (1, grid[0] * grid[1], 4))

    @jax.jit
    def jacobian():
        variables = host.init(jax.random.key(1), x, Site(grid))
        variables = jax.tree.map(lambda p: jax.random.normal(jax.random.key(2), p.shape), variables)
        return jax.jacobian(lambda x: host.apply(variables, x, Site(grid))[0].sum(-1))(x)

    return np.abs(jacobian()[:, 0]).sum(-1) > 1e-6


def test_windows_shift_by_half_and_clip_to_the_grid(monkeypatch):
    def neighbours(token, shifted, grid=(4, 4), size=2):
        host = WindowAttention(2, size, shifted, attn_type="gathered")
        return np.flatnonzero(seen(host, grid, monkeypatch)[token]).tolist()

    assert neighbours(0, shifted=False) == [0, 1, 4, 5]
    assert neighbours(5, shifted=True) == [5, 6, 9, 10]
    assert neighbours(0, shifted=True) == [0, 3, 12, 15]  # wrapped, and not masked: as the release's linear blocks
    assert neighbours(0, shifted=True, grid=(2, 4)) == [0, 3, 4, 7]  # one window along the rows: no shift there
    assert neighbours(0, shifted=True, grid=(2, 3), size=9) == list(range(6))
    assert neighbours(4, shifted=False, grid=(1, 5)) == [4]  # beside it is only padding


def test_stripes_are_a_cross_and_a_window_is_not(monkeypatch):
    def neighbours(**attributes):
        host = StripeAttention(2, attn_type="gathered", **attributes)
        return np.flatnonzero(seen(host, (3, 4), monkeypatch)[0]).tolist()

    lepe = {0, 1, 4, 5}  # of a 3 x 3 convolution at the corner, where the window lets it
    assert set(neighbours(split_size=1, branches=2)) == {0, 4, 8, 1, 2, 3}
    assert set(neighbours(split_size=2, branches=1)) == lepe
    assert neighbours(split_size=0, branches=1) == list(range(12))


@pytest.mark.parametrize(
    "name", ["flatten_deit_t", "flatten_pvt_t", "flatten_pvt_v2_b0", "flatten_swin_t", "flatten_cswin_t"]
)
def test_a_new_attention_needs_one_line(name, monkeypatch):
    monkeypatch.setitem(ATTENTIONS, "gathered", Gathered)
    depth = {"depth": 1} if "deit" in name else {"depths": (1, 1, 1, 1)}
    pattern = "gathered" if "deit" in name else "gathered,focused,softmax,gathered"
    model = create_model(name, image_size=64, num_classes=10, attn_type=pattern, **depth)
    logits = jax.eval_shape(lambda: model.init_with_output(jax.random.key(0), jnp.zeros((1, 64, 64, 3)))[0])
    assert logits.shape == (1, 10)


def test_an_odd_number_of_heads_cannot_be_shared_by_two_branches():
    with pytest.raises(ValueError, match="num_heads=3 is not divisible by branches=2"):
        StripeAttention(3, 1, 2, attn_type="softmax").init(jax.random.key(0), jnp.zeros((1, 4, 6)), Site((2, 2)))


@pytest.mark.parametrize("host", [WindowAttention(2, 2, False, "softmax"), ReducedAttention(2, "softmax", sr_ratio=2)])
def test_windows_and_reduced_keys_have_no_place_for_a_class_token(host):
    with pytest.raises(ValueError, match="no place for a class token"):
        host.init(jax.random.key(0), jnp.zeros((1, 17, 8)), Site((4, 4), prefix=1))
