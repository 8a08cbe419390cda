"""Nyström attention: its segments, its limit, and its two starts of the pseudoinverse."""

import jax.numpy as jnp
import numpy as np
import pytest

from flatten_jax.attention.core import along_sequence
from flatten_jax.attention.nystrom import nystrom_attention, pseudoinverse, segment_means
from flatten_jax.attention.softmax import softmax_attention


def test_segments_that_do_not_divide_the_sequence_are_shorter_first():
    x = jnp.arange(8.0).reshape(1, 8, 1, 1)
    np.testing.assert_allclose(segment_means(x, 3).reshape(-1), [0.5, 3, 6])  # 0 1 | 2 3 4 | 5 6 7
    np.testing.assert_allclose(segment_means(x, 4).reshape(-1), [0.5, 2.5, 4.5, 6.5])


def test_with_a_landmark_for_every_key_it_is_softmax_attention():
    q, k, v = np.random.RandomState(0).standard_normal((3, 1, 5, 2, 4)).astype(np.float32)
    np.testing.assert_array_equal(nystrom_attention(q, k, v, 5), softmax_attention(q, k, v))


@pytest.mark.parametrize("init_option", ["exact", "original"])
def test_only_the_exact_start_gives_an_example_the_same_in_any_batch(init_option):
    a = np.exp(np.random.RandomState(0).standard_normal((2, 2, 4, 4)) * [[[[0.1]]], [[[2]]]])
    a = jnp.asarray(a / a.sum(-1, keepdims=True), jnp.float32)
    apart = jnp.concatenate([pseudoinverse(a[i : i + 1], init_option) for i in range(2)])
    together = pseudoinverse(a, init_option)
    assert np.allclose(together, apart, rtol=1e-4, atol=1e-4) == (init_option == "exact")


def test_the_convolution_is_along_the_sequence():
    x, kernel = np.random.RandomState(0).standard_normal((6, 2)), np.random.RandomState(1).standard_normal((3, 2))
    expected = [np.correlate(x[:, c], kernel[:, c], "same") for c in range(2)]
    found = along_sequence(jnp.float32(x)[None, :, :, None], jnp.float32(kernel))[0, :, :, 0]
    np.testing.assert_allclose(found, np.stack(expected, 1), rtol=1e-5, atol=1e-6)
