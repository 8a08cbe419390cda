"""What is L2ViT's own: windows that take in their padding, two kinds of blocks, initial values."""

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from flatten_jax.attention import Site
from flatten_jax.models import dummy_images
from flatten_jax.models.l2vit import _WindowAttention
from flatten_jax.weights.layout import entries, layout

from .test_backbones import KEY, small


def test_what_pads_a_window_takes_part_as_keys():
    """A grid of 2 x 3 in a window of 4: sixteen keys, ten of them those of zeros, the biases."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((1, 6, 4)).astype(np.float32)
    params = {
        "qkv": {"kernel": rng.standard_normal((4, 12)), "bias": rng.standard_normal(12)},
        "proj": {"kernel": np.eye(4), "bias": np.zeros(4)},
    }
    module = _WindowAttention(1, "softmax", window_size=4)
    found = module.apply({"params": jax.tree.map(np.float32, params)}, x, Site((2, 3)))
    padded = np.concatenate([x[0], np.zeros((10, 4))])
    q, k, v = np.split(padded @ params["qkv"]["kernel"] + params["qkv"]["bias"], 3, axis=1)
    weights = np.exp(q @ k.T / 2)
    np.testing.assert_allclose(found[0], (weights @ v / weights.sum(axis=1, keepdims=True))[:6], rtol=1e-4, atol=1e-5)


def test_blocks_follow_their_attention():
    names = entries(layout(small("l2vit")))
    assert {"stages.1.0.cpe.1.proj.weight", "stages.1.1.local_mp.bn.running_var"} <= set(names)
    assert not {"stages.1.0.norm3.weight", "stages.1.1.cpe.1.proj.weight"} & set(names)
    linear = entries(layout(small("l2vit", attn_type="rala")))
    assert sum(name.endswith("local_mp.bn.running_var") for name in linear) == 5
    assert not any("cpe.1" in name for name in linear)


def test_a_window_without_tokens_is_refused():
    with pytest.raises(ValueError, match="window_size=0 must be 1 or more"):
        small("l2vit", window_size=0)


def test_initial_values_are_the_official_ones():
    model = small("l2vit", embed_dims=(64,) * 4, num_heads=(4,) * 4)
    params = flatten_dict(jax.jit(model.init)(KEY, dummy_images(model))["params"])
    for path, value in params.items():
        if path[-1] == "kernel":
            assert np.std(value) == pytest.approx(0.02, rel=4 * value.size**-0.5), path
        else:
            np.testing.assert_array_equal(value, {"scale": 1, "temperature": 16**-0.5}.get(path[-1], 0))
