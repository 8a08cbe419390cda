"""Linformer's two ways to share: its keys with its values, and one head's keys and values with all."""

import jax
import numpy as np
import pytest

import flatten_jax
from flatten_jax.hosts import StripeAttention


@pytest.mark.parametrize(("share_kv", "one_kv_head"), [(True, False), (False, True), (True, True)])
def test_shared_parts_are_those_of_the_formula(share_kv, one_kv_head):
    options = {"k": 3, "share_kv": share_kv, "one_kv_head": one_kv_head}
    layer = flatten_jax.LinearAttention("linformer", 2, options)
    x = np.random.RandomState(0).standard_normal((1, 6, 8)).astype(np.float32)
    variables = jax.tree.map(lambda a: 5 * a, layer.init(jax.random.key(0), x, grid=(2, 3)))
    weights = flatten_jax.to_torch(variables, layer, example=x, grid=(2, 3))
    width = 4 if one_kv_head else 8
    assert weights["to_k.weight"].shape == (width, 8)
    assert ("to_v.weight" in weights) == ("proj_v" in weights) == (not share_kv)

    q, keys = x[0] @ weights["to_q.weight"].T, weights["proj_k"].T @ (x[0] @ weights["to_k.weight"].T)
    values = keys if share_kv else weights["proj_v"].T @ (x[0] @ weights["to_v.weight"].T)
    out = []
    for head in range(2):
        here = slice(0, 4) if one_kv_head else slice(4 * head, 4 * head + 4)
        scores = np.exp(q[:, 4 * head : 4 * head + 4] @ keys[:, here].T / 2)
        out.append(scores / scores.sum(-1, keepdims=True) @ values[:, here])
    expected = np.concatenate(out, axis=1) @ weights["to_out.weight"].T + weights["to_out.bias"]
    np.testing.assert_allclose(layer.apply(variables, x, grid=(2, 3))[0], expected, rtol=1e-4, atol=1e-6)


def test_one_key_head_is_not_cut_in_two_for_stripes():
    host = StripeAttention(2, 2, 2, attn_type="linformer", options={"one_kv_head": True})
    with pytest.raises(ValueError, match="one_kv_head=True has no halves"):
        jax.eval_shape(lambda: host.init(jax.random.key(0), np.ones((1, 16, 8), np.float32), flatten_jax.Site((4, 4))))
