"""Forward-mode differentiation passes through the models within `forward_mode`, and gives the transpose of backward."""

import jax
import numpy as np
import pytest

import flatten_jax
from flatten_jax.ops.derivative import with_backward

from ..models.test_backbones import images, random_variables, small


@pytest.mark.parametrize("family", ["pvt_v2", "swin"])  # every operation with a backward pass by hand is in these
def test_a_model_has_the_same_derivative_forwards_and_backwards(family):
    model = small(family, image_size=32)
    variables, x = random_variables(model), images(model, 1)
    rng = np.random.default_rng(0)
    direction, cotangent = rng.standard_normal(x.shape).astype("f"), rng.standard_normal((1, 10)).astype("f")

    def logits(x):
        return model.apply(variables, x)

    with flatten_jax.forward_mode():
        forwards, change = jax.jit(lambda x: jax.jvp(logits, (x,), (direction,)))(x)
    backwards, gradient = jax.jit(lambda x: (lambda y, pull: (y, pull(cotangent)[0]))(*jax.vjp(logits, x)))(x)
    np.testing.assert_allclose(forwards, backwards, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose((change * cotangent).sum(), (gradient * direction).sum(), rtol=1e-3)


def test_what_is_compiled_outside_is_compiled_anew_inside():
    tripled = with_backward(lambda x: 2 * x, lambda x: (2 * x, None), lambda _, g: (3 * g,))
    gradient = jax.jit(jax.grad(tripled))
    assert gradient(1.0) == 3
    with flatten_jax.forward_mode():
        assert gradient(1.0) == 2
    assert gradient(1.0) == 3
