"""SVT's gate: the wavelet transform against sums written out, and without a gate nothing changes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

import flatten_jax
from flatten_jax.attention import svt


def test_filters_are_sums_over_mirrored_edges():
    random = np.random.default_rng(0)
    x, taps = random.normal(size=(1, 7, 3, 1)), (0.5, -1.0, 0.0, 2.0, 0.0, -1.0, 0.5)
    long = np.concatenate([x[:, 2::-1], x, x[:, :-4:-1]], axis=1)
    expected = sum(tap * long[:, i : i + 7] for i, tap in enumerate(taps))
    filtered = jax.jit(lambda x: svt.filtered(x, taps, 1))
    np.testing.assert_allclose(filtered(jnp.float32(x)), expected, atol=1e-6)
    check_grads(filtered, (jnp.float32(x),), order=1, modes=["rev"], atol=1e-2, rtol=1e-2)


@pytest.mark.parametrize("grid", [(8, 8), (2, 14)])
def test_without_a_gate_the_transform_is_undone(grid):
    x = jax.random.normal(jax.random.key(0), (2, *grid, 3))

    @jax.jit
    def both(x):
        low, real, imaginary = svt.analysis(x)
        return low, real, svt.synthesis(low, real, imaginary), svt.synthesis(low, 0 * real, 0 * imaginary)

    low, real, back, smooth = both(x)
    assert low.shape == x.shape
    assert real.shape == (6, 2, grid[0] // 2, grid[1] // 2, 3)
    np.testing.assert_allclose(back, x, atol=3e-6)
    assert np.abs(smooth - x).max() > 0.1


def test_orientations_are_told_apart():
    """Waves that run along one diagonal and the other are in the two images of the band that is high in both."""
    row, column = np.indices((16, 16))
    waves = [np.cos(1.9 * (row + sign * column)) for sign in (1, -1)]
    _, real, imaginary = jax.jit(svt.analysis)(jnp.float32(np.stack(waves))[..., None])
    energy = (np.square(real) + np.square(imaginary))[:, :, 2:-2, 2:-2].mean(axis=(2, 3, 4))
    assert energy[1, 0] > 15 * energy[4, 0]
    assert energy[4, 1] > 15 * energy[1, 1]


def test_the_perceptron_is_linear_in_complex_numbers():
    random = np.random.default_rng(0)
    z, weight, bias = (random.normal(size=(2, *shape)) for shape in ((3, 8), (2, 4, 4), (2, 4)))
    real, imaginary = svt.complex_linear(*jnp.float32(z), jnp.float32(weight), jnp.float32(bias))
    z, weight, bias = (a[0] + 1j * a[1] for a in (z, weight, bias))
    expected = np.concatenate([z[:, :4] @ weight[0] + bias[0], z[:, 4:] @ weight[1] + bias[1]], axis=1)
    np.testing.assert_allclose(real + 1j * imaginary, expected, atol=1e-5)


def test_an_odd_grid_is_cut_to_its_size_and_channels_must_have_groups():
    layer = flatten_jax.LinearAttention("svt", 2)
    out = jax.eval_shape(lambda: layer.init_with_output(jax.random.key(0), jnp.zeros((1, 5, 7, 8))))[0]
    assert out.shape == (1, 5, 7, 8)
    with pytest.raises(ValueError, match="channels=6 is not divisible by num_blocks=4"):
        layer.init(jax.random.key(0), jnp.zeros((1, 4, 4, 6)))
