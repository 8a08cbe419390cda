"""Multiply-adds of what is no plain product."""

import jax
import jax.numpy as jnp
import pytest

from flatten_jax.attention.core import adaptive_pool, dynamic_depthwise, resize
from flatten_jax.models.flops import products


def count(function, *shapes):
    traced = jax.make_jaxpr(function)(*(jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes))
    return sum(number for _, number in products(traced.jaxpr))


@pytest.mark.parametrize(
    ("function", "shapes", "expected"),
    [
        (dynamic_depthwise, [(2, 4, 6, 8), (2, 3, 3, 8)], 9 * 2 * 4 * 6 * 8),
        (lambda x: resize(x, (8, 12)), [(2, 4, 6, 8)], 0),
        (lambda x: adaptive_pool(x, (3, 3)), [(2, 4, 6, 8)], 0),
        (jnp.fft.fft2, [(5, 8, 4)], 2.5 * 5 * 32 * 5),
        (jnp.fft.rfft, [(5, 16)], 2.5 * 5 * 16 * 4),
        (lambda x: jax.lax.fori_loop(0, 7, lambda _, y: y @ x, x), [(4, 4)], 7 * 64),
    ],
)
def test_the_rule_of_each_kind(function, shapes, expected):
    assert count(function, *shapes) == expected
