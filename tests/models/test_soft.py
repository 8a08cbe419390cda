"""What is special in SOFT: positions of a fixed size, a class token in the last stage, dropout of single values."""

import flax.linen as nn
import jax
import numpy as np
import pytest

from flatten_jax.attention import Site
from flatten_jax.attention.core import resize
from flatten_jax.models import abstract_variables
from flatten_jax.models.soft import PostNormBlock

from .test_backbones import images, random_variables, small


def test_positions_are_interpolated_to_the_grid_and_the_class_token_keeps_its_own():
    fixed = small("soft", image_size=(64, 96))
    fitting = small("soft", image_size=(64, 96), position_size=(64, 96))
    variables = random_variables(fixed)
    params = dict(variables["params"])
    for i, side in enumerate((16, 8, 4, 2)):
        positions, prefix = params[f"pos_embed{i + 1}"], i == 3
        maps = positions[:, int(prefix) :].reshape(1, side, side, 8)
        tokens = np.asarray(resize(maps, (side, side * 3 // 2))).reshape(1, -1, 8)
        params[f"pos_embed{i + 1}"] = np.concatenate([positions[:, : int(prefix)], tokens], axis=1)
    batch = images(fixed)
    both = jax.jit(lambda own, others: (fixed.apply(own, batch), fitting.apply(others, batch)))
    np.testing.assert_allclose(*both(variables, {**variables, "params": params}), rtol=1e-4, atol=1e-5)


class Ones(nn.Module):
    """An attention of which nothing is known but that it gives ones."""

    def __call__(self, x, site):
        return np.ones_like(x)


def test_dropout_takes_single_values_and_scales_the_others():
    block = PostNormBlock(Ones, mlp_ratio=1)
    x, site = np.zeros((2, 4, 32), np.float32), Site((2, 2), train=True)
    variables = jax.jit(lambda: block.init({"params": jax.random.key(0), "dropout": jax.random.key(1)}, x, site, 0.5))()

    @jax.jit
    def into_norm1(key):
        seen = []

        def record(call, args, kwargs, context):
            seen.extend(args[:1] if context.module.name == "norm1" else ())
            return call(*args, **kwargs)

        with nn.intercept_methods(record):
            block.apply(variables, x, site, 0.5, rngs={"dropout": key})
        return seen[0]

    given = np.asarray(into_norm1(jax.random.key(2)))
    assert set(np.unique(given)) == {0, 2}
    assert 0.3 < (given == 0).mean() < 0.7
    assert len({token.tobytes() for example in given for token in example}) == 8


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_size": 16}, r"ratio=8 must be 1 to 4"),
        ({"attn_type": "soft"}, r"takes no class token, pool the tokens \(class_token=False\)"),
        ({"position_size": (60, 64)}, r"nearest that is: \(64, 64\)"),
    ],
)
def test_what_does_not_fit_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        small("soft", **options)


def test_attentions_are_exchanged():
    model = small("soft", attn_type="rala,linear,softmax,soft", class_token=False)
    tree = abstract_variables(model)["params"]
    assert set(tree["block1_0"]["att"]["mha"]) >= {"qkvo", "proj"}
    assert tree["pos_embed4"].shape == (1, 4, 8)
