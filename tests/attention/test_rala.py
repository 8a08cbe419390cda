"""What RALA and MALA do to keys and scores, beside their goldens."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import flatten_jax
from flatten_jax import LinearAttention
from flatten_jax.attention.rala import augmented_keys, magnitude_attention
from flatten_jax.weights.layout import entries, layout

from ..models.reference import state_dict


def features(index, tokens=7):
    return np.random.default_rng(index).uniform(size=(2, tokens, 3, 8))


def test_equal_keys_stay_as_they_are():
    k = np.broadcast_to(features(0)[:, :1], (2, 7, 3, 8))
    np.testing.assert_allclose(augmented_keys(features(1), k), k, rtol=1e-5)
    assert not np.allclose(augmented_keys(features(1), features(0)), features(0), rtol=1e-2)


def test_magnitude_attention_is_the_paper_s_formula_in_float64():
    q, k, v, turned_q, turned_k = (features(i, 5 if i in (0, 3) else 7) for i in range(5))
    z = np.einsum("bnhd,bhd->bnh", q, k.mean(axis=1))[..., None] * 8**-0.5
    products = np.einsum("bnhd,bmhd,bmhe->bnhe", turned_q, turned_k, v) * 8**-0.5 / 7
    expected = (1 + 1 / (z + 1e-6)) * products - z * v.mean(axis=1, keepdims=True)
    with jax.enable_x64(True):
        found = magnitude_attention(*map(jnp.asarray, (q, k, v)), (jnp.asarray(turned_q), jnp.asarray(turned_k)))
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_the_softmax_form_is_its_formula():
    """(softmax(R q (R k)^T / sqrt(d)) v + lepe(v)) * o by loops, with a gate and weights that all matter."""
    grid, layer = (2, 3), LinearAttention("rala_softmax", 1)
    x = np.random.RandomState(7).standard_normal((1, 6, 8)).astype(np.float32)
    weights = state_dict(list(entries(layout(layer, x, grid=grid)).items()), gain=[["qkvo.weight", 2]])
    variables = flatten_jax.from_torch(weights, layer, example=x, grid=grid)
    found = jax.jit(lambda variables, x: layer.apply(variables, x, grid=grid))(variables, x)

    streams = x[0] @ weights["qkvo.weight"][:, :, 0, 0].T + weights["qkvo.bias"]
    q, k, v, o = np.split(streams, 4, axis=1)
    places = [(row, column) for row in range(2) for column in range(3)]

    def turned(y):
        """Pairs as complex numbers: two turn with the row, two with the column, by 1 and 1 / 10000 a step."""
        angles = np.array([[row, row * 1e-4, column, column * 1e-4] for row, column in places])
        pairs = (y[:, ::2] + 1j * y[:, 1::2]) * np.exp(1j * angles)
        return np.stack([pairs.real, pairs.imag], axis=-1).reshape(y.shape)

    scores = np.exp(turned(q) @ turned(k).T * 8**-0.5)
    mixed = scores / scores.sum(axis=1, keepdims=True) @ v
    kernel = weights["lepe.weight"][:, 0]
    for i, (row, column) in enumerate(places):
        for j, (other, beside) in enumerate(places):
            mixed[i] += kernel[:, other - row + 2, beside - column + 2] * v[j]
    expected = ((mixed + weights["lepe.bias"]) * o) @ weights["proj.weight"][:, :, 0, 0].T + weights["proj.bias"]
    np.testing.assert_allclose(found[0], expected, atol=1e-5)


@pytest.mark.parametrize("name", ["rala", "mala", "rala_softmax"])
def test_heads_too_narrow_for_rows_and_columns_are_refused(name):
    with pytest.raises(ValueError, match="d=6 channels of a head must be divisible by 4"):
        jax.eval_shape(lambda: LinearAttention(name, 2).init(jax.random.key(0), jnp.zeros((1, 2, 3, 12))))
