"""SOFT's inverse and its hand-written derivative, and what SOFT++ takes from the batch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import flatten_jax
from flatten_jax.attention.soft import gaussian, newton_solve, normed_newton_solve


def kernel(batch=2, m=6, spread=1.0):
    landmarks = spread * np.random.RandomState(0).standard_normal((batch, m, 2, 3))
    return gaussian(jnp.asarray(landmarks), jnp.asarray(landmarks))


@pytest.mark.parametrize("steps", [1, 3, 20])
def test_the_derivative_is_that_of_an_inverse_however_far_the_steps_have_come(steps):
    with jax.enable_x64(True):
        a, b = kernel(), np.random.RandomState(1).standard_normal((2, 2, 6, 4))
        shifted = np.asarray(a) + 0.01 * np.eye(6)
        x = 1.8 * shifted / np.asarray(a).sum(-1).max(-1)[..., None, None] ** 2
        for _ in range(steps):
            x = 2 * x - x @ shifted @ x
        gradient = np.random.RandomState(2).standard_normal(b.shape)
        out, pull = jax.vjp(lambda a, b: newton_solve(a, b, steps), a, b)
        of_a, of_b = pull(gradient)
    np.testing.assert_allclose(out, x @ b, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(of_b, x.mT @ gradient, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(of_a, -x.mT @ gradient @ b.mT @ x.mT, rtol=1e-9, atol=1e-9)


def test_the_normed_inverse_and_its_derivative_are_exact_where_the_steps_converge():
    with jax.enable_x64(True):
        a, b = kernel(spread=3.0), np.random.RandomState(1).standard_normal((2, 2, 6, 4))

        def exact(a, b):
            rows = a.sum(axis=-1, keepdims=True) ** -0.5
            return rows * jnp.linalg.solve(a, rows * b)

        gradient = np.random.RandomState(2).standard_normal(b.shape)
        ours, expected = (
            (out, *pull(gradient)) for out, pull in (jax.vjp(f, a, b) for f in (normed_newton_solve, exact))
        )
    for found, wanted in zip(ours, expected, strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("per_example", [False, True])
def test_only_with_a_start_for_each_example_does_it_get_the_same_in_any_batch(per_example):
    a = jnp.concatenate([kernel(1, spread=0.1), kernel(1, spread=3.0)])
    b = np.random.RandomState(1).standard_normal((2, 2, 6, 4)).astype(np.float32)
    together = normed_newton_solve(a, b, 3, per_example)
    apart = jnp.concatenate([normed_newton_solve(a[i : i + 1], b[i : i + 1], 3, per_example) for i in range(2)])
    assert np.allclose(together, apart, rtol=1e-4, atol=1e-4) == per_example


@pytest.mark.parametrize("option", ["ratio", "newton_steps"])
def test_options_out_of_range_are_refused(option):
    with pytest.raises(ValueError, match=f"{option}=0 must be"):
        flatten_jax.LinearAttention("soft", 2, {option: 0}).init(jax.random.key(0), jnp.ones((1, 16, 8)), grid=(4, 4))
