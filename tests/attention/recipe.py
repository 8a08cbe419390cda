"""Weights and input that anyone can write down, for attentions whose official classes gave a few printed numbers."""

import jax
import numpy as np

import flatten_jax
from flatten_jax.weights.layout import entries, layout


def sines(index, shape):
    """The parameter of this number in the order of PyTorch's names."""
    return (0.3 * np.sin(0.37 * np.arange(np.prod(shape)) + 0.9 * index + 0.1)).reshape(shape)


def cosines(*shape):
    return np.cos(0.21 * np.arange(np.prod(shape))).reshape(shape)


def answer(layer, x, grid, as_made=()):
    """What a layer gives for x, in float64; parameters in `as_made` keep their initial values."""
    with jax.enable_x64(True):
        made = jax.jit(lambda: layer.init(jax.random.key(0), x, grid=grid))()
        made = flatten_jax.to_torch(made, layer, example=x, grid=grid)
        names = sorted(entries(layout(layer, x, grid=grid)))
        weights = {
            name: made[name] if name in as_made else sines(index, made[name].shape) for index, name in enumerate(names)
        }
        variables = flatten_jax.from_torch(weights, layer, example=x, grid=grid)
        apply = jax.jit(lambda variables, x: layer.apply(variables, x, grid=grid))
        return np.asarray(apply(jax.tree.map(np.float64, variables), np.float64(x)))


def assert_is(found, first, last, total, absolute, tolerance=1e-6):
    """The first values, the last, the sum and the sum of magnitudes."""
    found = found.reshape(-1)
    np.testing.assert_allclose(found[: len(first)], first, atol=tolerance)
    np.testing.assert_allclose(found[-1], last, atol=tolerance)
    np.testing.assert_allclose([found.sum(), np.abs(found).sum()], [total, absolute], atol=tolerance * found.size**0.5)
