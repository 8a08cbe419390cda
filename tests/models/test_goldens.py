"""Whole models and options against frozen answers of the PyTorch originals."""

import jax
import numpy as np
import pytest

import flatten_jax

from . import reference

WHOLE = [
    "agent_cswin_t",
    "agent_deit_t",
    "deit_t",
    "flatten_cswin_t",
    "flatten_deit_t",
    "flatten_pvt_t",
    "flatten_pvt_v2_b0",
    "flatten_swin_t",
    "inline_swin_t",
    "pola_pvt_t",
    "swin_t",
]
SLOW = [
    "care_s0",
    "convnext_t",
    "crossvit_ti",
    "cvt_13",
    "efficientvit_b1",
    "flowformer",
    "hornet_t_gf",
    "hyena_deit_t",
    "l2vit_t",
    "mhla_deit_t",
    "mila_t",
    "msvmamba_n",
    "ravlt_t",
    "skipat_deit_t",
    "soft_t",
    "sret_t",
    "stvit_r_swin_t",
    "svt_h_s",
    "tnt_s",
    "vig_h_t",
    "vig_t",
    "vvt_t",
    "xcit_n12_p16",
]
# Maps of features_only, and what the names of the whole model's weights begin with where those of the maps' do not.
FEATURES = {
    "efficientvit_b1_features": (dict(), "backbone."),
    "l2vit_t_features": (dict(feature_norm=True), ""),
    "mavit_t_features": (dict(feature_norm=True), ""),
    "mila_t_features": (dict(feature_norm=True), ""),
    "vig_h_t_features": (dict(feature_norm=True), ""),
    "xcit_n12_p16_features": (dict(pyramid=True), ""),
}
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


def weights(golden):
    return reference.state_dict(golden["keys"], golden.get("gain", ()), golden.get("add", ()))


@pytest.mark.parametrize("name", [*WHOLE, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)])
def test_a_model_gives_the_original_logits(name):
    """Of the original's names and shapes: reading them is strict."""
    golden = reference.load(name)
    model = flatten_jax.create_model(name)
    # A loop over alike blocks compiles in half the time.
    model = model.clone(scan="scan" not in model.idle_options())
    variables = flatten_jax.from_torch(weights(golden), model)
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


@pytest.mark.slow
@pytest.mark.parametrize("name", FEATURES)
def test_a_backbone_gives_the_original_maps(name):
    golden, (options, prefix) = reference.load(name), FEATURES[name]
    size = tuple(map(int, golden["img_hw"]))
    model = flatten_jax.create_model(
        name.removesuffix("_features"), image_size=size, features_only=True, scan=True, **options
    )
    named = {prefix + name: array for name, array in weights(golden).items()}
    maps = jax.jit(model.apply)(flatten_jax.from_torch(named, model), reference.images(1, *size))
    assert len(maps) == golden["n"]
    for i, x in enumerate(maps):
        x = np.asarray(x).transpose(0, 3, 1, 2)
        assert x.shape == tuple(golden[f"shape{i}"])
        sample = x.ravel()[:: max(1, x.size // 256)][:256]
        assert np.abs(sample - golden[f"sample{i}"]).max() < 1e-5 * np.abs(golden[f"sample{i}"]).max()
        assert np.sqrt(np.square(x, dtype=np.float64).mean()) == pytest.approx(golden[f"rms{i}"], rel=1e-5)


def test_no_golden_is_left_out():
    assert sorted([*WHOLE, *SLOW, *FEATURES, *OPTIONS]) == sorted(path.stem for path in reference.GOLDENS.glob("*.npz"))
