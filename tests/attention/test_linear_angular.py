"""The sparse softmax part of linear-angular attention, which its golden does without."""

import jax
import jax.numpy as jnp
import numpy as np

from flatten_jax.attention.linear_angular import linear_angular_attention


def test_the_sparse_part_is_softmax_without_its_small_weights():
    q, k, v, own = (np.asarray(jax.random.normal(jax.random.key(i), (7, 4))) for i in range(4))
    scores = np.exp(q @ k.T / 2)
    weights = scores / scores.sum(1, keepdims=True)
    assert (weights > 0.02).any() and (weights <= 0.02).any()
    sparse = np.where(weights > 0.02, weights, 0)
    angular = (q @ k.T) / np.linalg.norm(q, axis=1)[:, None] / np.linalg.norm(k, axis=1) / np.pi
    expected = own / 2 + (angular + sparse) @ v
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    found = linear_angular_attention(*(jnp.asarray(a)[None, :, None] for a in (q, k, v, own)), sparse_reg=True)
    np.testing.assert_allclose(found[0, :, 0], expected, atol=1e-6)
