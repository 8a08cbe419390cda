"""The model behind a state dict, from names and shapes alone."""

import numpy as np
import pytest

from flatten_jax import create_model
from flatten_jax.models import PUBLISHED
from flatten_jax.weights.guess import guess_model
from flatten_jax.weights.layout import entries, layout


def shapes(name, **options):
    """A state dict whose arrays take no memory."""
    model = create_model(name, **options)
    return {name: np.broadcast_to(np.float32(0), shape) for name, shape in entries(layout(model)).items()}


WITH_PUBLISHED_WEIGHTS = [name for name, published in PUBLISHED.items() if published.weights]


# All 42 models are recognised but one, which takes minutes to see: nothing in softmax CSwin depends on the image size,
# so cswin_b_384 is taken for cswin_b.
@pytest.mark.parametrize("name", [*WITH_PUBLISHED_WEIGHTS, "flatten_deit_t", "pvt_v2_b0", "swin_t"])
def test_a_model_is_recognised(name):
    assert guess_model(shapes(name)) == (name, {})


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("flatten_deit_t", dict(num_classes=10, image_size=(256, 256), kernel_size=3)),
        ("flatten_deit_t", dict(attn_type="focused*6+softmax")),
        ("deit_t", dict(image_size=(384, 384))),
        pytest.param(
            "flatten_pvt_t", dict(num_classes=10, attn_type="focused,focused,softmax,softmax"), marks=pytest.mark.slow
        ),
        pytest.param(
            "flatten_swin_t",
            dict(attn_type="focused,focused,focused*2+softmax,softmax", num_classes=0, window_size=7),
            marks=pytest.mark.slow,
        ),
    ],
)
def test_options_are_recognised(name, options):
    assert guess_model(shapes(name, **options)) == (name, options)


def test_buffers_do_not_disturb():
    given = shapes("deit_t")
    given["blocks.0.attn.relative_position_index"] = np.zeros((4, 4), np.int64)
    assert guess_model(given) == ("deit_t", {})


def test_the_nearest_model_is_named_with_what_differs():
    given = shapes("flatten_deit_t")
    del given["norm.bias"]
    given["blocks.0.attn.qkv.bias"] = np.zeros(65, np.float32)
    with pytest.raises(ValueError) as error:
        guess_model(given)
    assert str(error.value) == (
        "no model has these shapes; the nearest is flatten_deit_t: norm.bias is missing; "
        "blocks.0.attn.qkv.bias is (65,) instead of (576,)"
    )
    with pytest.raises(ValueError, match="no block is among the names"):
        guess_model({"features.0.weight": np.zeros((64, 3, 11, 11))})
