"""BatchNorm against PyTorch's formulas written out in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flatten_jax.ops.batch_norm import BatchNorm
from flatten_jax.training.sharding import make_mesh, over_data


def given(batch=16, mean=3.0):
    random = np.random.default_rng(0)
    params = {"scale": random.standard_normal(4, np.float32), "bias": random.standard_normal(4, np.float32)}
    stats = {"mean": random.standard_normal(4, np.float32), "var": 1 + random.random(4, np.float32)}
    x = (mean + 2 * random.standard_normal((batch, 3, 5, 4))).astype(np.float32)
    return {"params": params, "batch_stats": stats}, x


def normalised(x, mean, var, params):
    return (np.float64(x) - mean) / np.sqrt(var + 1e-5) * params["scale"] + params["bias"]


def test_evaluation_has_the_running_statistics():
    variables, x = given()
    y = BatchNorm().apply(variables, x, False)
    np.testing.assert_allclose(y, normalised(x, *variables["batch_stats"].values(), variables["params"]), atol=1e-5)


@pytest.mark.parametrize("mean", [3.0, 1000.0])
def test_training_has_those_of_the_batch(mean):
    """A large mean costs no digits of the variance."""
    variables, x = given(mean=mean)
    y, _ = BatchNorm().apply(variables, x, True, mutable=["batch_stats"])
    expected = normalised(x, np.float64(x).mean((0, 1, 2)), np.float64(x).var((0, 1, 2)), variables["params"])
    np.testing.assert_allclose(y, expected, atol=1e-3 if mean > 100 else 1e-5)


def test_running_statistics_after_two_steps():
    """The variance that is kept is the unbiased one: ddof=1. Flax's BatchNorm keeps the biased one."""
    variables, x = given(batch=2)
    mean, var = variables["batch_stats"]["mean"], variables["batch_stats"]["var"]
    for step in (x, 3 * x + 1):
        _, state = BatchNorm().apply(variables, step, True, mutable=["batch_stats"])
        variables = {**variables, **state}
        mean = 0.9 * mean + 0.1 * step.mean((0, 1, 2), np.float64)
        var = 0.9 * var + 0.1 * step.var((0, 1, 2), np.float64, ddof=1)
    np.testing.assert_allclose(variables["batch_stats"]["mean"], mean, rtol=1e-6)
    np.testing.assert_allclose(variables["batch_stats"]["var"], var, rtol=1e-6)


def test_initial_statistics_are_those_of_no_batch():
    variables = BatchNorm().init(jax.random.key(0), given()[1], True)
    np.testing.assert_array_equal(variables["batch_stats"]["mean"], np.zeros(4))
    np.testing.assert_array_equal(variables["batch_stats"]["var"], np.ones(4))


def test_a_batch_spread_over_eight_devices_is_one_batch():
    """Values, running statistics and gradients are those of one device."""
    variables, x = given()
    weight = np.random.default_rng(1).standard_normal(x.shape).astype(np.float32)

    @jax.jit
    def step(variables, x, weight):
        def loss(params, x):
            y, state = BatchNorm().apply({**variables, "params": params}, x, True, mutable=["batch_stats"])
            return (y * weight).sum(), (y, state)

        return jax.grad(loss, argnums=(0, 1), has_aux=True)(variables["params"], x)

    spread = over_data(make_mesh(jax.devices()))
    alone, together = step(variables, x, weight), step(variables, *jax.device_put((x, weight), spread))
    assert len(together[1][0].sharding.device_set) == 8
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), alone, together)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_precision_has_statistics_in_float32(dtype):
    variables, x = given()
    x = jnp.asarray(1000 * x, dtype)  # squares and sums are beyond float16
    y, state = BatchNorm(dtype=dtype).apply(variables, x, True, mutable=["batch_stats"])
    expected, wide = BatchNorm().apply(variables, x.astype(jnp.float32), True, mutable=["batch_stats"])
    assert y.dtype == dtype
    np.testing.assert_allclose(y.astype(jnp.float32), expected, atol=0.02)
    jax.tree.map(np.testing.assert_array_equal, state, wide)
    assert BatchNorm(dtype=dtype).apply(variables, x, False).dtype == dtype


def test_one_value_a_channel_is_no_batch():
    variables, x = given()
    with pytest.raises(ValueError, match=r"x.shape=\(1, 4\) must have more than one value"):
        BatchNorm().apply(variables, x[0, 0, :1], True, mutable=["batch_stats"])
