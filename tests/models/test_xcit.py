"""XCiT: the code of positions, the pyramid of maps, constant drop-path, statistics, half precision."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flatten_jax import create_model
from flatten_jax.models import abstract_variables
from flatten_jax.models.pyramid import Upsample
from flatten_jax.models.xcit import position_code


def small(**options):
    own = dict(depth=4, embed_dim=16, num_heads=2, image_size=(50, 70), num_classes=10)
    return create_model("xcit_n12_p16", **{**own, **options})


def test_position_code_is_the_papers():
    code = position_code((3, 5))
    assert code.shape == (3, 5, 64)
    for i, j, m in ((0, 0, 0), (2, 3, 1), (1, 4, 6), (2, 0, 31)):
        wave = math.cos if m % 2 else math.sin
        frequency = 10000 ** (2 * (m // 2) / 32)
        row, column = (2 * math.pi * (k + 1) / (side + 1e-6) / frequency for k, side in ((i, 3), (j, 5)))
        np.testing.assert_allclose(code[i, j, [m, 32 + m]], [wave(row), wave(column)], rtol=1e-12)


def test_a_value_becomes_two_by_two():
    rng = np.random.default_rng(0)
    x, kernel, bias = (rng.standard_normal(shape).astype(np.float32) for shape in ((1, 2, 3, 4), (2, 2, 5, 4), (5,)))
    y = Upsample(5).apply({"params": {"kernel": kernel, "bias": bias}}, x)
    assert y.shape == (1, 4, 6, 5)
    for row, column in ((0, 0), (3, 4), (2, 5)):
        expected = kernel[row % 2, column % 2] @ x[0, row // 2, column // 2] + bias
        np.testing.assert_allclose(y[0, row, column], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("patch_size", [16, 8])
def test_the_pyramid_has_four_strides(patch_size):
    model = small(patch_size=patch_size, image_size=(64, 96), features_only=True, pyramid=True)
    maps = jax.eval_shape(model.apply, abstract_variables(model), jnp.zeros((1, 64, 96, 3)))
    assert [x.shape[1:3] for x in maps] == [(16, 24), (8, 12), (4, 6), (2, 3)]
    assert [info["reduction"] for info in model.feature_info] == [4, 8, 16, 32]
    assert [info["reduction"] for info in small(features_only=True).feature_info] == [16] * len(maps)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(pyramid=True), "'pyramid' has no effect"),
        (dict(pyramid=True, features_only=True, out_indices=(0, 1, 3)), "pyramid=True needs four maps"),
        (dict(pyramid=True, features_only=True, image_size=16), "needs larger images"),
        (dict(patch_size=4), "patch_size=4 must be 8 or 16"),
    ],
)
def test_what_cannot_be_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        small(**options)


def test_maps_are_the_originals_blocks():
    assert [i["index"] for i in create_model("xcit_n12_p16", features_only=True).feature_info] == [3, 5, 7, 11]


def test_training_drops_alike_in_all_blocks_and_keeps_statistics():
    model, images = small(drop_path=0.5), jax.random.normal(jax.random.key(0), (3, 50, 70, 3))
    assert model.rates() == [[0.5] * 4]
    variables = jax.jit(model.init)(jax.random.key(0, impl="rbg"), images)

    @jax.jit
    def train(key):
        return model.apply(variables, images, train=True, rngs={"dropout": key}, mutable=["batch_stats"])

    (first, state), (second, _) = train(jax.random.key(1)), train(jax.random.key(2))
    assert np.abs(first - second).max() > 1e-3
    old, new = jax.tree.leaves(variables["batch_stats"]), jax.tree.leaves(state["batch_stats"])
    assert all(np.abs(a - b).max() > 1e-6 for a, b in zip(old, new, strict=True))


def test_bfloat16_is_near():
    models = [small(depth=1), small(depth=1, dtype="bfloat16", remat=True)]
    images = jax.random.normal(jax.random.key(1), (2, 50, 70, 3))
    variables = jax.jit(models[0].init)(jax.random.key(0, impl="rbg"), images)
    exact, near = jax.jit(lambda *args: [model.apply(*args) for model in models])(variables, images)
    np.testing.assert_allclose(near, exact, atol=0.03 * np.abs(exact).max())
    half = small(dtype="bfloat16", features_only=True, image_size=64, pyramid=True)
    maps = jax.eval_shape(half.apply, abstract_variables(half), jnp.zeros((1, 64, 64, 3)))
    assert {x.dtype for x in maps} == {jnp.dtype("bfloat16")}
