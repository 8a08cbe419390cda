"""LiteMLA against EfficientViT's class, whose golden has other names than the release's state dicts."""

import jax
import numpy as np

import flatten_jax

from ..models.reference import state_dict

KEYS = [
    ("a.qkv.0.weight", (288, 96, 1, 1)),
    ("a.aggreg.0.0.weight", (288, 1, 5, 5)),
    ("a.aggreg.0.1.weight", (288, 32, 1, 1)),
    ("a.proj.0.weight", (96, 192, 1, 1)),
    ("a.proj.1.weight", (96,)),
    ("a.proj.1.bias", (96,)),
]
RELEASED = {"a.qkv.0.": "qkv.conv.", "a.aggreg.": "aggreg.", "a.proj.0.": "proj.conv.", "a.proj.1.": "proj.norm."}


def test_it_gives_what_the_official_class_gives():
    """Every 2683rd value of the answer on 14 x 14 tokens, in evaluation with statistics that saw no batch."""
    weights = {
        name.replace(old, new): value
        for name, value in state_dict(KEYS).items()
        for old, new in RELEASED.items()
        if name.startswith(old)
    }
    weights |= {"proj.norm.running_mean": np.zeros(96), "proj.norm.running_var": np.ones(96)}
    layer = flatten_jax.LinearAttention("litemla", num_heads=6, dim=32)
    x = np.random.RandomState(7).standard_normal((2, 196, 96)).astype(np.float32)
    variables = flatten_jax.from_torch(weights, layer, example=x, grid=(14, 14))
    with jax.default_matmul_precision("highest"):
        y = jax.jit(lambda variables, x: layer.apply(variables, x, grid=(14, 14)))(variables, x)
    expected = [
        *(0.08232861, -0.00183948, -0.03299519, -0.06490012, -0.13212837, -0.16148007, 0.07893315, 0.06119328),
        *(0.00102681, -0.14229351, 0.04806593, 0.06385213, -0.07280597, -0.06739426, -0.03494184),
    ]
    np.testing.assert_allclose(np.asarray(y).reshape(-1)[::2683], expected, atol=1.6e-6)  # 1e-5 of the largest


def test_training_moves_the_running_statistics():
    layer = flatten_jax.LinearAttention("litemla", num_heads=2)
    x = jax.random.normal(jax.random.key(0), (2, 3, 4, 8))

    @jax.jit
    def train():
        variables = layer.init(jax.random.key(1), x)
        return layer.apply(variables, x, train=True, mutable=["batch_stats"])[1]

    assert np.all(np.asarray(train()["batch_stats"]["proj_norm"]["var"]) != 1)
