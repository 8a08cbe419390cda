"""Hedgehog's maps in the forms that the golden does not have."""

import jax
import numpy as np
import pytest

import flatten_jax
from flatten_jax.attention.hedgehog import hedgehog_features

X = np.random.RandomState(0).standard_normal((1, 5, 2, 4)).astype(np.float32)


def test_the_exponential_map_has_its_largest_feature_at_one_both_ways():
    weights = np.random.RandomState(1).standard_normal((2, 4, 3)).astype(np.float32)
    y = np.einsum("bnhd,hdf->bnhf", X, weights)
    expected = np.concatenate([np.exp(y - y.max(-1, keepdims=True)), np.exp(y.min(-1, keepdims=True) - y)], -1)
    np.testing.assert_allclose(hedgehog_features(X, weights, "exp_dim"), expected, rtol=1e-5)


@pytest.mark.parametrize("skip_connection", [False, True])
def test_it_starts_as_the_softmax_of_the_tokens_themselves(skip_connection):
    options = {"zero_init": True, "skip_connection": skip_connection}
    layer = flatten_jax.LinearAttention("hedgehog", 2, options)
    params = layer.init(jax.random.key(0), X.reshape(1, 5, 8), grid=(1, 5))["params"]
    found = hedgehog_features(X, params["q_map"], skip_connection=skip_connection)
    np.testing.assert_allclose(found[..., :4], jax.nn.softmax(X, axis=-1), rtol=1e-5)


def test_a_skip_connection_needs_as_many_features_as_channels():
    layer = flatten_jax.LinearAttention("hedgehog", 2, {"skip_connection": True, "feature_dim": 3})
    with pytest.raises(ValueError, match="feature_dim=3 must be 4 with skip_connection=True"):
        layer.init(jax.random.key(0), X.reshape(1, 5, 8), grid=(1, 5))
