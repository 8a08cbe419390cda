"""The local sub-layer of L2ViT against its official class; its attention has a golden of its own."""

import jax
import numpy as np

import flatten_jax
from flatten_jax.attention import Site
from flatten_jax.attention.l2vit import LCM

from ..models.reference import state_dict

KEYS = [
    ("a.conv1.weight", (96, 1, 7, 7)),
    ("a.conv1.bias", (96,)),
    ("a.bn.weight", (96,)),
    ("a.bn.bias", (96,)),
    ("a.conv2.weight", (96, 1, 7, 7)),
    ("a.conv2.bias", (96,)),
]


def test_it_gives_what_the_official_class_gives():
    """Every 2683rd value of the answer on 14 x 14 tokens, in evaluation with statistics that saw no batch."""
    weights = {name.removeprefix("a."): value for name, value in state_dict(KEYS).items()}
    weights |= {"bn.running_mean": np.zeros(96), "bn.running_var": np.ones(96)}
    x = np.random.RandomState(7).standard_normal((2, 196, 96)).astype(np.float32)
    variables = flatten_jax.from_torch(weights, LCM(), example=x, grid=(14, 14))
    y = jax.jit(lambda variables, x: LCM().apply(variables, x, Site((14, 14))))(variables, x)
    expected = [
        *(0.36473617, 0.50898154, 0.23863218, -1.05809310, -0.23454647, 0.47177921, 0.37611104, -0.06053263),
        *(-0.21231133, -0.09201474, 0.49449130, -0.51976907, -0.22904218, -0.30367451, -0.61104307),
    ]
    np.testing.assert_allclose(np.asarray(y).reshape(-1)[::2683], expected, atol=1e-5)


def test_a_class_token_gets_nothing_and_gives_nothing():
    module, x = LCM(kernel_size=3), jax.random.normal(jax.random.key(0), (2, 1 + 12, 4))

    @jax.jit
    def both():
        variables = module.init(jax.random.key(1), x, Site((3, 4), prefix=1))
        return (
            module.apply(variables, x, Site((3, 4), prefix=1)),
            module.apply(variables, x[:, 1:], Site((3, 4))),
        )

    y, without = both()
    np.testing.assert_array_equal(y[:, 0], 0)
    np.testing.assert_allclose(y[:, 1:], without, atol=1e-6)


def test_training_moves_the_running_statistics():
    module, x = LCM(kernel_size=3), jax.random.normal(jax.random.key(0), (2, 12, 4))

    @jax.jit
    def train():
        variables = module.init(jax.random.key(1), x, Site((3, 4)))
        return module.apply(variables, x, Site((3, 4), train=True), mutable=["batch_stats"])[1]

    assert np.all(np.asarray(train()["batch_stats"]["bn"]["var"]) != 1)
