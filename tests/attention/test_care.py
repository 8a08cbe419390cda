"""CARE without attention, the form of its first two stages, by the official names."""

import numpy as np

import flatten_jax

from ..models.reference import state_dict


def test_strips_are_the_sums_written_out():
    layer = flatten_jax.LinearAttention("care", 2, if_att=False, mem_dim=2)
    x = np.random.default_rng(0).normal(size=(1, 4, 5, 8)).astype(np.float32)
    keys = [["dwconvatt_1.weight", [2, 1, 11, 1]], ["dwconvatt_1.bias", [2]], ["dwconvatt_2.weight", [2, 1, 1, 11]]]
    keys += [["dwconvatt_2.bias", [2]], ["dwconv1.weight", [2, 1, 3, 3]], ["dwconv1.bias", [2]]]
    keys += [["dwconv2.weight", [2, 1, 7, 7]], ["dwconv2.bias", [2]]]
    weights = state_dict(keys)
    found = layer.apply(flatten_jax.from_torch(weights, layer, example=x), x)
    np.testing.assert_array_equal(found[..., :2], x[..., :2])  # the memory
    padded = np.pad(x[0, :, :, 2:4], ((5, 5), (5, 5), (0, 0)))
    expected = weights["dwconvatt_1.bias"] + weights["dwconvatt_2.bias"]
    for i in range(11):
        expected = expected + padded[i : i + 4, 5:10] * weights["dwconvatt_1.weight"][:, 0, i, 0]
        expected = expected + padded[5:9, i : i + 5] * weights["dwconvatt_2.weight"][:, 0, 0, i]
    np.testing.assert_allclose(found[0, :, :, 2:4], expected, atol=1e-5)
