"""What is MILA's own: initial values, rotary positions of the original, and whose names an attention's layers have."""

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from flatten_jax.attention import Site
from flatten_jax.attention.core import rotate
from flatten_jax.models import create_model, dummy_images
from flatten_jax.weights.layout import entries, layout

from .test_backbones import KEY, small


def test_initial_values_are_the_official_ones():
    """Linear layers normal, convolutions as PyTorch makes them: positions start at up to 1 / 3."""
    model = small("mila", embed_dim=32)
    params = flatten_dict(jax.jit(model.init)(KEY, dummy_images(model))["params"])
    for path, value in params.items():
        if path[-1] == "kernel" and value.ndim == 2:
            assert np.std(value) == pytest.approx(0.02, rel=4 * value.size**-0.5), path
        elif path[-1] == "kernel":
            bound = np.prod(value.shape[:3]) ** -0.5
            assert 0.9 * bound < np.abs(value).max() <= bound, path
        elif path[-2] in ("cpe1", "cpe2", "dwc", "lepe"):
            assert 0.2 < np.abs(value).max() <= 1 / 3, path
        elif path[-1] == "bias" and path[-2] != "conv":
            assert not value.any(), path


def test_the_rotations_that_are_handed_to_the_original_are_those_of_the_attention():
    model = create_model("mila_t", image_size=(70, 76), depths=(1, 2, 1, 1))
    buffers = model.torch_buffers()
    assert [x.shape[:2] for x in buffers.values()] == [(18, 19), (9, 10), (9, 10), (5, 5), (3, 3)]
    rotations = buffers["layers.1.blocks.1.attn.rope.rotations"].reshape(90, 64, 2)
    x = np.random.default_rng(0).standard_normal((1, 90, 128)).astype(np.float32)
    theta = 1 / 10000 ** (np.arange(32) / 32)
    expected = (x[..., ::2] + 1j * x[..., 1::2]) * (rotations[..., 0] + 1j * rotations[..., 1])
    turned = rotate(x, Site((9, 10)), theta)
    np.testing.assert_allclose(turned[..., ::2] + 1j * turned[..., 1::2], expected, atol=1e-5)


def test_layers_of_an_attention_are_beside_the_norms_of_its_block():
    names = entries(layout(create_model("mila_t", attn_type="rala,mlla,mlla,mlla", depths=(1, 1, 1, 1), image_size=64)))
    assert {"layers.0.blocks.0.qkvo.weight", "layers.0.blocks.0.lepe.weight"} <= set(names)
    assert {"layers.1.blocks.0.in_proj.weight", "layers.1.blocks.0.attn.qk.weight"} <= set(names)
    assert names["layers.0.blocks.0.qkvo.weight"] == (256, 64, 1, 1)
