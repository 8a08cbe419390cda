"""The model behind a state dict, from names and shapes alone."""

import numpy as np
import pytest

from flatten_jax import create_model
from flatten_jax.attention import pattern
from flatten_jax.models import cswin, deit, pvt, pvt_v2, swin
from flatten_jax.models.registry import MODELS
from flatten_jax.weights.fingerprint import pattern_of, template_of
from flatten_jax.weights.guess import guess, guess_model
from flatten_jax.weights.layout import entries, layout

from ..models import reference
from ..models.test_registry import SIZES
from . import toys


def shapes(name, **options):
    """A state dict whose arrays take no memory."""
    model = create_model(name, **options)
    return {name: np.broadcast_to(np.float32(0), shape) for name, shape in entries(layout(model)).items()}


def shapes_of_blocks(name):
    """The same of a model as it is listed, of traces of a block in each stage: quicker by far for a deep model."""
    model = MODELS[name].family(**MODELS[name].settings)
    found = {entry: shape for entry, (shape, _) in template_of(model, 0, 0).outer.items()}
    for i, names in enumerate(model.attentions()):
        for j in range(len(names)):
            prefix, of_block = template_of(model, i, j).blocks[i]
            found |= {f"{prefix}{j}.{entry}": shape for entry, (shape, _) in of_block.items()}
    return {entry: np.broadcast_to(np.float32(0), shape) for entry, shape in found.items()}


# Nothing in these depends on the image size.
AS_ANOTHER = {"cswin_b_384": "cswin_b", "inline_cswin_b_384": "inline_cswin_b"}


@pytest.mark.slow
@pytest.mark.parametrize("family", [deit, pvt, pvt_v2, swin, cswin], ids=lambda family: family.FAMILY.__name__)
def test_every_model_is_recognised(family):
    """One test for a family, as all of its models are compared with the same blocks, which take seconds to trace."""
    for name in family.MODELS:
        given = shapes_of_blocks(name)
        assert sum(array.size for array in given.values()) == SIZES[name][0]
        if (reference.GOLDENS / f"{name}.npz").exists():  # names and shapes of the original's own class
            originals = {entry: tuple(shape) for entry, shape in reference.load(name)["keys"]}
            assert {entry: array.shape for entry, array in given.items()} == originals
        found = guess(given)
        assert (found.name, found.options) == (AS_ANOTHER.get(name, name), {})
        said = [note for note in found.notes if "is taken, and others have the same names and shapes: " in note]
        equal = [other for other, one in AS_ANOTHER.items() if one == found.name]
        assert [note.rpartition(": ")[2] for note in said] == equal


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("flatten_deit_t", dict(num_classes=10, image_size=(256, 256), kernel_size=3)),
        ("flatten_deit_t", dict(attn_type="focused*6+softmax")),
        ("deit_t", dict(image_size=(384, 384))),
        pytest.param("agent_deit_t", dict(image_size=(256, 256), num_classes=10), marks=pytest.mark.slow),
        ("inline_deit_t", dict(image_size=(256, 256))),
        ("deit_t", dict(attn_type="inline")),
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


ORIGINALS = {name: entry.family for name, entry in MODELS.items() if entry.family.hallmark}


def test_every_original_has_a_hallmark_of_its_own():
    families = {entry.family for entry in MODELS.values() if entry.family.hallmark}
    hosts = {entry.family.__name__ for entry in MODELS.values() if not entry.family.hallmark}
    assert hosts == {"DeiT", "PVT", "PVTv2", "Swin", "CSwin"}
    for path in reference.GOLDENS.glob("*.npz"):
        if path.stem in MODELS:
            keys = {entry for entry, _ in reference.load(path.stem)["keys"]}
            expected = [MODELS[path.stem].family] if path.stem in ORIGINALS else []
            assert [family for family in families if family.hallmark in keys] == expected, path.stem


def test_an_original_is_recognised():
    assert guess_model(shapes("convnext_t", num_classes=10)) == ("convnext_t", dict(num_classes=10))
