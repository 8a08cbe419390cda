"""HorNet's filter in the Fourier domain, against sums written out."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import flatten_jax
from flatten_jax.attention.gnconv import global_filter


def test_the_filter_is_a_circular_convolution_as_large_as_the_grid():
    random = np.random.default_rng(0)
    x, kernel = random.normal(size=(4, 5)), random.normal(size=(4, 5))
    spectrum = np.fft.rfft2(kernel)
    out = global_filter(
        jnp.float32(x)[None, :, :, None], jnp.float32(np.stack([spectrum.real, spectrum.imag], -1))[None]
    )
    expected = sum(kernel[i, j] * np.roll(x, (i, j), (0, 1)) for i in range(4) for j in range(5))
    np.testing.assert_allclose(out[0, :, :, 0], expected, atol=1e-5)


def test_a_filter_of_another_grid_keeps_its_corners():
    """PyTorch's interpolate(mode="bilinear", align_corners=True): a plane stays the plane between the same corners."""
    x = jax.random.normal(jax.random.key(0), (1, 6, 10, 1))

    def plane(rows, columns):
        row, column = np.linspace(0, 1, rows)[:, None], np.linspace(0, 1, columns)
        return jnp.float32(np.stack([1 + row + 2 * column, row - column], -1))[None]

    np.testing.assert_allclose(global_filter(x, plane(3, 4)), global_filter(x, plane(6, 6)), atol=1e-5)


def test_channels_that_gates_cannot_halve_are_refused():
    with pytest.raises(ValueError, match=r"order=5 .* channels=24"):
        flatten_jax.LinearAttention("gnconv", 2).init(jax.random.key(0), jnp.zeros((1, 4, 4, 24)))
