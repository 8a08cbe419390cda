"""Hyena N-D: the convolution against sums written out, and what each direction sees."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import flatten_jax
from flatten_jax.attention.hyena import causal_convolution


def test_the_convolution_is_causal_in_rows_and_columns():
    x, kernel = np.random.default_rng(0).normal(size=(2, 3, 4))
    expected = [
        [sum(kernel[a - i, b - j] * x[i, j] for i in range(a + 1) for j in range(b + 1)) for b in range(4)]
        for a in range(3)
    ]
    found = causal_convolution(jnp.float32(x)[None, :, :, None], jnp.float32(kernel)[..., None])
    np.testing.assert_allclose(found[0, :, :, 0], expected, atol=1e-5)


@pytest.mark.parametrize(("direction", "seen"), [("standard", (0, 2)), ("seq", (2, 0)), ("4dir", (2, 2))])
def test_a_direction_sees_its_quarter_of_the_picture(direction, seen):
    """And one token more all around, by the 3 x 3 filter. The token that changes is in the middle of 7 x 7."""
    layer = flatten_jax.LinearAttention("hyena", 1, direction=direction, product_filter=True)
    x = jax.random.normal(jax.random.key(0), (1, 7, 7, 2))
    params = jax.tree.map(lambda a: 5 * a, jax.jit(layer.init)(jax.random.key(1), x)["params"])
    apply = jax.jit(lambda x: layer.apply({"params": params}, x))
    moved = jnp.abs(apply(x.at[0, 3, 3].add(10)) - apply(x)).sum(-1)[0] > 1e-5
    first, last = seen
    assert not moved[:2].any() if first == 0 else moved[0].any()
    assert not moved[5:].any() if last == 0 else moved[6].any()


def test_counts_are_those_of_the_release():
    """Hyena-DeiT-T has 6,042,400 with a filter of both, 6,290,464 with a product, in 12 layers of width 192."""
    x = jnp.zeros((1, 14, 14, 192))

    def count(**options):
        made = jax.eval_shape(lambda: flatten_jax.LinearAttention("hyena", 3, **options).init(jax.random.key(0), x))
        return sum(leaf.size for leaf in jax.tree.leaves(made))

    assert 12 * (count(product_filter=True) - count()) == 6_290_464 - 6_042_400
