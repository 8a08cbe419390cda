"""Circulant attention: printed numbers of the official class, and the sum over offsets written out."""

import jax.numpy as jnp
import numpy as np

import flatten_jax
from flatten_jax.attention.circulant import circulant_attention

from .recipe import answer, assert_is, cosines


def test_it_gives_the_numbers_of_the_official_class():
    out = answer(flatten_jax.LinearAttention("circulant", 2), cosines(2, 16, 8), (4, 4))
    assert_is(out, [-0.32787982, 0.70636988, -0.18183162], -0.18770645, -3.3023602322, 66.9956995267)


def test_weights_belong_to_offsets_on_a_torus():
    q, k, v = np.random.default_rng(0).normal(size=(3, 3, 5))
    moved = [(i, j) for i in range(3) for j in range(5)]
    scores = np.array([(q * np.roll(k, (-i, -j), (0, 1))).sum() for i, j in moved]) / 15**0.5
    weights = np.exp(scores) / np.exp(scores).sum()
    expected = sum(w * np.roll(v, (-i, -j), (0, 1)) for w, (i, j) in zip(weights, moved, strict=True))
    spectra = (jnp.fft.rfft2(jnp.float32(a)[None, :, :, None], axes=(1, 2), norm="ortho") for a in (q, k, v))
    np.testing.assert_allclose(circulant_attention(*spectra, (3, 5))[0, :, :, 0], expected, atol=1e-5)
