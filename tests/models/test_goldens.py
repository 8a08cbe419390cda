"""Whole models and options against frozen answers of the PyTorch originals."""

import jax
import numpy as np
import pytest

import flatten_jax

from . import reference

WHOLE = [
    "agent_cswin_t",
    "agent_deit_t",
    "agent_pvt_t",
    "agent_swin_t",
    "deit_t",
    "flatten_cswin_t",
    "flatten_deit_t",
    "flatten_pvt_t",
    "flatten_pvt_v2_b0",
    "flatten_swin_t",
    "inline_cswin_t",
    "inline_deit_t",
    "inline_pvt_t",
    "inline_swin_t",
    "pola_pvt_t",
    "pola_swin_t",
    "swin_t",
]
OPTIONS = [
    "cswin_mixed_stage",
    "cswin_stripes",
    "pvt_reduced_rectangle",
    "pvt_v2_reduced_rectangle",
    "swin_mixed_stage",
    "swin_padded_maps",
    "swin_shifted_linear_windows",
    "swin_window_12",
]


@pytest.fixture(autouse=True)
def exact_products():
    with jax.default_matmul_precision("highest"):
        yield


def assert_close(ours, golden):
    error = np.abs(np.asarray(ours) - golden).max() / np.abs(golden).max()
    assert error < 1e-5
    assert np.all(ours.argmax(-1) == golden.argmax(-1))


@pytest.mark.parametrize("name", WHOLE)
def test_a_model_gives_the_original_logits(name):
    golden = reference.load(name)
    # Some as a loop over their blocks, which compiles in half the time.
    model = flatten_jax.create_model(name, scan=name.startswith(("agent", "inline", "pola")))
    variables = flatten_jax.from_torch(reference.state_dict(golden["keys"]), model)
    images = reference.images(len(golden["logits"]), *model.image_size)
    assert_close(jax.jit(model.apply)(variables, images), golden["logits"])


@pytest.mark.parametrize("name", OPTIONS)
def test_an_option_gives_the_original_outputs(name):
    golden = reference.load(name)
    size = tuple(map(int, golden["image_size"]))
    model = flatten_jax.create_model(str(golden["model"]), image_size=size, **golden["options"])
    variables = flatten_jax.from_torch(reference.state_dict(golden["keys"]), model)
    output = jax.jit(model.apply)(variables, reference.images(1, *size))
    assert_close(output[-1] if model.features_only else output, golden["output"])


def test_no_golden_is_left_out():
    assert sorted(WHOLE + OPTIONS) == sorted(path.stem for path in reference.GOLDENS.glob("*.npz"))
