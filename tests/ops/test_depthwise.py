"""The depthwise convolution: one function, two lowerings."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flatten_jax.ops.depthwise import DepthwiseConv, _gradients, _grouped_convolution, depthwise_conv
from flatten_jax.training.sharding import make_mesh, over_data


@pytest.mark.parametrize("size", [1, 3, 5])
@pytest.mark.parametrize("grid", [(7, 7), (3, 10), (1, 2), (17, 2)])  # 17 rows are three blocks of six, less one
def test_shifted_sum_is_the_grouped_convolution_with_its_gradients(size, grid):
    x = jax.random.normal(jax.random.key(0), (2, *grid, 6))
    kernel = jax.random.normal(jax.random.key(1), (size, size, 6))
    bias = jax.random.normal(jax.random.key(2), (6,))
    weight = jax.random.normal(jax.random.key(3), x.shape)
    values, gradients = zip(
        *(jax.value_and_grad(lambda x, k, b, f=f: (f(x, k, b) * weight).sum(), (0, 1, 2))(x, kernel, bias)
          for f in (depthwise_conv, _grouped_convolution)),
        strict=True,
    )  # fmt: skip
    np.testing.assert_allclose(*values, rtol=1e-4, atol=1e-4)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), *gradients)
    for ours, expected in zip(_gradients(x, kernel, weight), gradients[1], strict=False):  # other platforms' lowering
        np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-4)


def test_gradients_of_halves_are_summed_in_float32():
    x = jnp.ones((1, 400, 400, 1), jnp.float16)  # the sums are 160,000, float16 ends at 65,504
    sums = jax.grad(lambda k, b: depthwise_conv(x, k, b).sum(dtype=jnp.float32), (0, 1))(
        jnp.ones((1, 1, 1)), jnp.ones(1)
    )
    np.testing.assert_allclose([float(total[..., 0].sum()) for total in sums], 160_000)


def test_a_batch_that_is_spread_over_devices_stays_there():
    spread = over_data(make_mesh(jax.devices()))
    x = jax.device_put(jax.random.normal(jax.random.key(0), (16, 9, 9, 4)), spread)
    kernel = jax.random.normal(jax.random.key(1), (3, 3, 4))
    gradient = jax.jit(jax.grad(lambda x, kernel: (depthwise_conv(x, kernel) ** 2).sum(), (0, 1)))
    text = gradient.lower(x, kernel).compile().as_text()
    assert "all-gather" not in text
    assert "all-reduce" in text  # of the kernel's gradient


def test_it_correlates_rows_then_columns():
    """A single one in the kernel, one row up and one column left of its centre, moves the picture down and right."""
    picture = jnp.arange(12.0).reshape(1, 3, 4, 1)
    kernel = jnp.zeros((3, 3, 1)).at[0, 0].set(1)
    expected = [[0, 0, 0, 0], [0, 0, 1, 2], [0, 4, 5, 6]]
    np.testing.assert_array_equal(depthwise_conv(picture, kernel)[0, :, :, 0], expected)


def test_halves_are_summed_in_float32():
    x = jnp.full((1, 5, 5, 1), 200.0, jnp.float16)
    kernel = jnp.full((5, 5, 1), 2.0, jnp.float16).at[0, 0].set(-48.0)  # the sum ends at 0, its largest part is -9600
    assert depthwise_conv(x, kernel)[0, 2, 2, 0] == 0


def test_heads_share_the_kernel():
    x = jax.random.normal(jax.random.key(0), (1, 4, 4, 3))
    module = DepthwiseConv(features=3, kernel_size=3)
    params = module.init(jax.random.key(1), x)
    twice = module.apply(params, jnp.concatenate([x, 2 * x], axis=-1))
    bias = params["params"]["bias"]
    np.testing.assert_allclose(twice[..., 3:] - bias, 2 * (twice[..., :3] - bias), rtol=1e-4, atol=1e-5)


def test_even_kernels_are_refused():
    with pytest.raises(ValueError, match="k odd"):
        depthwise_conv(jnp.zeros((1, 4, 4, 2)), jnp.zeros((4, 4, 2)))


def test_initial_values_are_torch_conv2d_defaults():
    params = DepthwiseConv(features=4096).init(jax.random.key(0), jnp.zeros((1, 1, 1, 4096)))["params"]
    for value in params.values():  # uniform(-0.2, 0.2) for 5 x 5
        assert 0.199 < float(jnp.abs(value).max()) <= 0.2
        assert float(value.std()) == pytest.approx(0.2 / 3**0.5, rel=0.03)
