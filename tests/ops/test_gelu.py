"""GELU: the form for TPUs in half precision. The usual one is held by the goldens of the models."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flatten_jax.ops import gelu as module
from flatten_jax.ops.gelu import gelu


def exact(x):
    return np.array([value * math.erfc(-value / math.sqrt(2)) / 2 for value in x.tolist()])


def test_tanh_of_a_polynomial_is_gelu_to_four_millionths():
    x = np.linspace(-40, 40, 40001, dtype=np.float32)
    ours = 0.5 * x * np.asarray(module._by_tanh(jnp.asarray(x)))
    np.testing.assert_allclose(ours, exact(x), rtol=0, atol=4e-6)
    np.testing.assert_array_equal(module._by_tanh(jnp.array([-3e38, -1e6, 0, 1e6, 3e38])), [0, 0, 1, 2, 2])


def test_in_bfloat16_it_is_within_a_step_where_erf_is_within_half_of_one():
    x = np.asarray(jnp.linspace(-3.5, 8, 20001).astype(jnp.bfloat16).astype(jnp.float32))
    ours = (0.5 * x * module._by_tanh(jnp.asarray(x))).astype(jnp.bfloat16).astype(jnp.float32)
    wanted = exact(x)
    step = 2.0 ** (np.floor(np.log2(np.maximum(np.abs(wanted), 1e-3))) - 7)
    assert np.max(np.abs(np.asarray(ours) - wanted) / step) < 0.9


CASES = [
    ("tpu", "bfloat16", "tanh"),
    ("tpu", "float32", "erf"),
    ("cpu", "bfloat16", "erf"),
    ("cuda", "bfloat16", "erf"),
]


@pytest.mark.parametrize("platform, dtype, used", CASES)
def test_only_half_precision_on_a_tpu_has_it(platform, dtype, used):
    gradient = jax.jit(jax.grad(lambda x: gelu(x).astype(jnp.float32).sum()))
    text = gradient.trace(jnp.ones((8, 128), dtype)).lower(lowering_platforms=(platform,)).as_text()
    assert {name for name in ("tanh", "erf") if f"{name} " in text} == {used}
