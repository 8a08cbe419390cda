"""The model behind a state dict, from names and shapes alone."""

import numpy as np
import pytest

from flatten_jax import create_model
from flatten_jax.attention import pattern
from flatten_jax.models import PUBLISHED
from flatten_jax.weights.fingerprint import pattern_of
from flatten_jax.weights.guess import guess, guess_model
from flatten_jax.weights.layout import entries, layout

from . import toys


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


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("flatten_deit_t", dict(use_dwc=False)),
        ("flatten_deit_t", dict(attn_type="toy_gated")),
        ("flatten_deit_t", dict(attn_type="toy_bare/softmax")),
        ("flatten_deit_t", dict(attn_type="toy_tied", image_size=(192, 192), slots=5)),
        pytest.param("flatten_swin_t", dict(softmax_window_size=4), marks=pytest.mark.slow),
        pytest.param("flatten_pvt_t", dict(attn_type="toy_tied", slots=(3, 4, 3, 5)), marks=pytest.mark.slow),
    ],
)
def test_attentions_and_their_options_are_recognised_by_names_and_shapes(name, options, monkeypatch):
    toys.register(monkeypatch)
    assert guess_model(shapes(name, **options)) == (name, options)


def test_attentions_without_parameters_are_the_models_own_or_softmax_and_it_is_said():
    name, options, (note,) = guess(shapes("flatten_deit_t", attn_type="focused*3+linear"))
    assert (name, options) == ("flatten_deit_t", dict(attn_type="focused*3+softmax"))
    assert "softmax is taken for attention, and others have the same names and shapes: " in note
    assert "linear" in note
    # Neither where an attention has some, nor where the model's own softmax is told by its table of biases.
    assert guess(shapes("flatten_swin_t")).notes == ()


def test_a_pattern_is_written_so_that_it_is_read_again():
    for written, depths in [
        ("linear", (2, 2)),
        ("focused,softmax", (2, 2)),
        ("softmax*3+inline*6+softmax", (12,)),
        ("focused,focused*4+softmax", (2, 6)),
        ("inline/softmax", (6,)),
        ("inline/softmax", (2, 5)),
    ]:
        assert pattern_of(pattern(written, depths)) == written
