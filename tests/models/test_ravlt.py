"""What is RAVLT's own: its head, its initial values, and its training; else test_backbones.py and its goldens."""

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

import flatten_jax
from flatten_jax.attention import Site
from flatten_jax.attention.rala import rotated
from flatten_jax.models import create_model, dummy_images

from .test_backbones import KEY, images, random_variables, small


def test_logits_are_the_head_of_the_projected_map():
    model, headless, raw = small("ravlt"), small("ravlt", num_classes=0), small("ravlt", features_only=True)
    variables, batch = random_variables(model), images(model)
    logits, pooled, maps = jax.jit(lambda *args: [m.apply(*args) for m in (model, headless, raw)])(variables, batch)
    params, running = variables["params"], variables["batch_stats"]["norm"]
    y = maps[-1] @ params["proj"]["kernel"][0, 0] + params["proj"]["bias"]
    y = (y - running["mean"]) / np.sqrt(running["var"] + 1e-5) * params["norm"]["scale"] + params["norm"]["bias"]
    expected = (y * (1 + np.tanh(y / 2)) / 2).mean(axis=(1, 2))
    np.testing.assert_allclose(pooled, expected, rtol=1e-4, atol=1e-5)
    head = params["head"]
    np.testing.assert_allclose(logits, pooled @ head["kernel"][0, 0] + head["bias"], rtol=1e-3, atol=1e-4)


def test_initial_values_are_the_official_ones():
    model = small("ravlt", embed_dims=(64,) * 4, num_heads=(2,) * 4, layer_scale=(1.0, 1.0, 1e-6, 1e-6))
    params = flatten_dict(jax.jit(model.init)(KEY, dummy_images(model))["params"])
    for path, value in params.items():
        if path[-1] in ("gamma_1", "gamma_2"):
            assert value.shape == (1, 64, 1, 1)
            np.testing.assert_array_equal(value, 1 if path[0] in ("layers_0", "layers_1") else np.float32(1e-6))
        elif path[-1] == "kernel":
            assert np.std(value) == pytest.approx(0.02, rel=4 * value.size**-0.5), path
        else:
            np.testing.assert_array_equal(value, 1 if path[-1] == "scale" else 0)


@pytest.mark.parametrize("family", ["ravlt", "mila", "l2vit"])
def test_training_drops_branches_and_moves_the_statistics(family):
    model = small(family, image_size=32, drop_path=0.5)
    variables, batch = random_variables(model), images(model)

    @jax.jit
    def train(variables, key):
        return model.apply(variables, batch, train=True, rngs={"dropout": key}, mutable=["batch_stats"])

    (first, moved), (again, _), (other, _) = (train(variables, jax.random.key(seed)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 1e-3
    means = flatten_dict(moved["batch_stats"])
    assert all(np.any(value != flatten_dict(variables["batch_stats"])[path]) for path, value in means.items())


def test_the_angles_that_are_handed_to_the_original_are_those_of_the_attention():
    """Each angle stands for both channels of a pair; the token of row 1, column 0 turns by them in its first half."""
    angles = create_model("ravlt_t").torch_buffers()
    assert sorted(angles) == [f"layers.{i}.RoPE.angle" for i in range(4)]
    q = np.zeros((1, 2, 1, 64), np.float32)
    q[..., ::2] = 1
    turned = rotated(q, q, Site((2, 1)))[0][0, 1, 0]
    angle = angles["layers.0.RoPE.angle"][::2]
    np.testing.assert_allclose(turned[:32:2], np.cos(angle), atol=1e-6)
    np.testing.assert_allclose(turned[1:32:2], np.sin(angle), atol=1e-6)


@pytest.mark.parametrize("name", ["ravlt_t", "mila_t", "l2vit_t", "vvt_t"])
@pytest.mark.parametrize("attention", ["focused", "mlla"])
def test_attentions_are_exchangeable(name, attention):
    model = create_model(name, attn_type=attention, image_size=64, num_classes=10, depths=(1, 1, 1, 1))
    names = flatten_jax.weights.layout.entries(flatten_jax.weights.layout.layout(model))
    assert any(name.endswith("in_proj.weight" if attention == "mlla" else "kv.weight") for name in names)
