"""Blocks in a loop compute what blocks written out do."""

import jax
import numpy as np
import pytest

from flatten_jax import create_model
from flatten_jax.models import abstract_variables, dummy_images
from flatten_jax.models.blocks import drop_path
from flatten_jax.models.flops import products
from flatten_jax.models.stack import repetitions

SWIN = dict(depths=(9,), num_heads=(2,), embed_dim=8, attn_type="M4", image_size=32, num_classes=10)
DEIT = dict(embed_dim=24, image_size=64, num_classes=10, drop_path=0.99999)


def random_variables(model):
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda x: (0.2 * rng.standard_normal(x.shape)).astype(np.float32), abstract_variables(model))


@pytest.mark.parametrize(
    ("kinds", "expected"),
    [("", []), ("a", [(1, 1)]), ("aaa", [(1, 3)]), ("ababc", [(2, 2), (1, 1)]), ("abbb", [(1, 1), (1, 3)])],
)
def test_repetitions(kinds, expected):
    assert list(repetitions(kinds)) == expected


@pytest.mark.slow
def test_a_loop_gives_the_same_values_and_gradients():
    """Shifted and unshifted windows in turn, linear blocks before softmax ones, one of each left over."""
    models = [create_model("flatten_swin_t", scan=scan, **SWIN) for scan in (False, True)]
    variables = random_variables(models[0])
    images = jax.random.normal(jax.random.key(0), (2, 32, 32, 3))

    def of(model):
        def loss(variables):
            logits = model.apply(variables, images, train=True)
            return (logits**2).sum(), logits

        (_, logits), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(variables)
        return logits, gradients

    (logits, gradients), (looped, of_loop) = map(of, models)
    np.testing.assert_allclose(looped, logits, rtol=1e-5, atol=1e-5 * np.abs(logits).max())
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4 * np.abs(b).max()), of_loop, gradients
    )
    assert jax.tree.structure(abstract_variables(models[1])) == jax.tree.structure(abstract_variables(models[0]))
    written_out, loops = (len([*products(jax.make_jaxpr(m.apply)(variables, images).jaxpr)]) for m in models)
    assert loops < 0.7 * written_out


L2VIT = dict(depths=(1, 3, 1, 1), num_heads=(2,) * 4, embed_dims=(8,) * 4, image_size=64)


@pytest.mark.parametrize(("name", "options"), [("flatten_swin_t", SWIN), ("l2vit_t", L2VIT)])
def test_shapes_are_those_of_all_blocks(name, options):
    """Though one of those that are alike is traced."""
    model = create_model(name, **options)
    expected = jax.eval_shape(lambda: model.init(jax.random.key(0), dummy_images(model)))
    assert abstract_variables(model) == expected


def test_in_a_loop_every_block_has_its_own_rate_of_drop_path():
    """The last block of two is dropped all but surely, the first never."""
    two = create_model("flatten_deit_t", depth=2, scan=True, **DEIT)
    one = create_model("flatten_deit_t", depth=1, **DEIT)
    variables = random_variables(two)
    images = jax.random.normal(jax.random.key(0), (2, 64, 64, 3))
    trained = jax.jit(
        lambda v: two.apply(v, images, train=True, rngs={"dropout": jax.random.key(0)}, method="forward_features")
    )(variables)
    of_first = {k: v for k, v in variables["params"].items() if k != "blocks_1"}
    expected = jax.jit(lambda p: one.apply({"params": p}, images, method="forward_features"))(of_first)
    np.testing.assert_allclose(trained, expected, rtol=1e-4, atol=1e-4)


def test_drop_path_keeps_the_mean_and_draws_once_for_an_example():
    dropped = np.asarray(drop_path(jax.numpy.ones((4000, 2, 3)), 0.25, jax.random.key(0)))
    assert set(np.unique(dropped)) == {0, np.float32(4 / 3)}
    assert (dropped == dropped[:, :1, :1]).all()
    assert abs(dropped.mean() - 1) < 0.05
