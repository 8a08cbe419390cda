"""What RALA and MALA do to keys and scores, beside their goldens."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flatten_jax import LinearAttention
from flatten_jax.attention.rala import augmented_keys, magnitude_attention


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


@pytest.mark.parametrize("name", ["rala", "mala"])
def test_heads_too_narrow_for_rows_and_columns_are_refused(name):
    with pytest.raises(ValueError, match="d=6 channels of a head must be divisible by 4"):
        jax.eval_shape(lambda: LinearAttention(name, 2).init(jax.random.key(0), jnp.zeros((1, 2, 3, 12))))
