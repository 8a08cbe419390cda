"""The attention for other people's models."""

import dataclasses
import doctest

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from flax.traverse_util import flatten_dict

from flatten_jax import FocusedLinearAttention, LinearAttention, QKVAttention, create_model
from flatten_jax.attention import Site, attention_options
from flatten_jax.hosts import drop_in
from flatten_jax.models import abstract_variables

GRID = (2, 6)


@pytest.fixture(scope="module")
def tokens():
    return jax.random.normal(jax.random.key(0), (2, 12, 16))


@pytest.fixture(scope="module")
def variables(tokens):
    """Of 2 heads, with values that all matter."""
    shapes = jax.eval_shape(lambda: FocusedLinearAttention(2).init(jax.random.key(0), tokens, GRID))
    keys = iter(jax.random.split(jax.random.key(1), 10))
    return jax.tree.map(lambda x: jax.random.normal(next(keys), x.shape), shapes)


def test_it_is_the_attention_of_the_models(tokens, variables):
    attentions = (
        LinearAttention("focused", 2, focusing_factor=2.0),
        FocusedLinearAttention(2, focusing_factor=2.0),
        FocusedLinearAttention(2),
        FocusedLinearAttention(2, dtype=jnp.bfloat16),
    )
    expected, same, other, half = jax.jit(lambda v: [a.apply(v, tokens, GRID) for a in attentions])(variables)
    np.testing.assert_allclose(same, expected, rtol=1e-6)
    assert not np.allclose(other, expected, rtol=1e-2)
    assert half.dtype == jnp.bfloat16


@pytest.mark.parametrize("option", [{"kernel_size": 3}, {"use_dwc": False}, {"use_positional_encoding": False}])
def test_what_is_made_is_chosen(tokens, option):
    def shapes(attention, grid=GRID):
        return jax.tree.map(jnp.shape, jax.eval_shape(lambda: attention.init(jax.random.key(0), tokens, grid)))

    assert shapes(FocusedLinearAttention(2, **option)) == shapes(QKVAttention(2, "focused", option), Site(GRID))
    assert shapes(FocusedLinearAttention(2, **option)) == shapes(LinearAttention("focused", 2, option))
    assert shapes(FocusedLinearAttention(2, **option)) != shapes(FocusedLinearAttention(2))


def test_the_options_are_those_of_the_attention_and_the_docs_name_them_all():
    fields = {f.name: f.default for f in dataclasses.fields(FocusedLinearAttention) if f.name not in ("parent", "name")}
    assert fields == {"num_heads": dataclasses.MISSING, "dtype": None} | attention_options("focused")
    attributes = FocusedLinearAttention.__doc__.partition("Attributes:")[2]
    assert [line.split(":")[0].strip() for line in attributes.strip().splitlines()] == list(fields)


def test_the_examples_of_the_docs_run():
    result = doctest.testmod(drop_in)
    assert result.attempted >= 8 and not result.failed


def test_parameters_of_a_models_layer_fit(variables):
    model = create_model("flatten_deit_t", image_size=(32, 96), embed_dim=16, num_heads=2, depth=1)
    layer = abstract_variables(model)["params"]["blocks_0"]["attn"]
    shapes = {path: x.shape for path, x in flatten_dict(layer).items()}
    assert {path: x.shape for path, x in flatten_dict(variables["params"]).items()} == shapes


def test_a_map_brings_its_grid_and_the_grid_matters(tokens, variables):
    attention = FocusedLinearAttention(2)
    apply = jax.jit(attention.apply, static_argnames="grid")
    out = apply(variables, tokens, grid=GRID)
    of_map = apply(variables, tokens.reshape(2, *GRID, 16))
    assert of_map.shape == (2, *GRID, 16)
    assert jnp.array_equal(of_map.reshape(out.shape), out)
    assert not jnp.allclose(apply(variables, tokens, grid=GRID[::-1]), out, rtol=1e-2)


def test_five_lines_train():
    class Pixels(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.Dense(16)(x)
            x = x + FocusedLinearAttention(num_heads=2)(x)
            return nn.Dense(2)(x.mean(axis=(1, 2)))

    images, labels = jax.random.normal(jax.random.key(0), (8, 4, 3, 3)), jnp.arange(8) % 2

    def loss(params):
        logits = Pixels().apply(params, images)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    step = jax.jit(jax.value_and_grad(loss))
    before = jax.jit(Pixels().init)(jax.random.key(1), images)
    value, gradient = step(before)
    assert all(np.any(x) for x in jax.tree.leaves(gradient))
    assert step(jax.tree.map(lambda p, g: p - 0.1 * g, before, gradient))[0] < value


def test_nnx_gives_the_numbers_of_linen_and_learns(tokens):
    linen = FocusedLinearAttention(2)
    attention = nnx.bridge.ToNNX(linen, rngs=nnx.Rngs(0)).lazy_init(tokens, grid=GRID)
    params = nnx.to_pure_dict(nnx.state(attention, nnx.Param))
    expected = jax.jit(linen.apply, static_argnames="grid")({"params": params}, tokens, grid=GRID)
    square, gradient = nnx.jit(nnx.value_and_grad(lambda module: (module(tokens, grid=GRID) ** 2).sum()))(attention)
    np.testing.assert_allclose(square, (expected**2).sum(), rtol=1e-5)
    assert gradient["dwc"]["kernel"].shape == (5, 5, 1, 8)
    assert np.any(gradient["dwc"]["kernel"][...])


@pytest.mark.parametrize(
    ("shape", "grid", "message"),
    [
        ((2, 12, 16), None, r"need grid=\(height, width\)"),
        ((2, 13, 16), (2, 6), r"13 tokens were given, and the grid 2 x 6 has 12; of class tokens"),
        ((2, 2, 6, 16), (6, 2), "is not that of the map"),
        ((12, 16), (2, 6), "neither tokens"),
        ((2, 12, 15), (2, 6), "channels=15 is not divisible by num_heads=2"),
    ],
)
def test_mistakes(shape, grid, message):
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(lambda: FocusedLinearAttention(2).init(jax.random.key(0), jnp.zeros(shape), grid))


def test_a_class_token_is_taken_where_the_attention_knows_what_to_do_with_it(tokens):
    x = jnp.concatenate([tokens[:, :1], tokens], axis=1)
    layer = LinearAttention("linear", 2)
    assert jax.eval_shape(lambda: layer.init_with_output(jax.random.key(0), x, GRID, 1)[0]).shape == x.shape
    with pytest.raises(ValueError, match=r"Focused takes no class token.*those that do: .*linear"):
        jax.eval_shape(lambda: LinearAttention("focused", 2).init(jax.random.key(0), x, GRID, 1))
    with pytest.raises(ValueError, match="give tokens"):
        jax.eval_shape(lambda: layer.init(jax.random.key(0), tokens.reshape(2, *GRID, 16), prefix=1))


def test_an_option_of_another_attention_and_an_unknown_name_are_refused():
    with pytest.raises(ValueError, match="linear has no option focusing_factor; it has feature_map"):
        LinearAttention("linear", 2, focusing_factor=3)
    with pytest.raises(ValueError, match="attn_type='liner' is not a known attention; did you mean 'linear'"):
        LinearAttention("liner", 2)
