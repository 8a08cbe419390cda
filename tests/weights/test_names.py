"""Names that wrappers, larger models and other libraries write: what is taken of them, and what is said."""

from collections import Counter
from pathlib import Path

import jax
import numpy as np
import pytest

import flatten_jax
from flatten_jax.weights.files import model_of
from flatten_jax.weights.kind import _FOREIGN, foreign_hint
from flatten_jax.weights.load import load_weights, load_with_report
from flatten_jax.weights.names import fitting, likely, not_timms, renamed, unwrapped

from .make_fixtures import weights
from .make_timm import MODELS
from .small import equal, tiny

PLAIN = {"patch_embed.weight": 0, "blocks.0.norm1.weight": 1, "blocks.1.norm1.weight": 2, "norm.weight": 3}


def prefixed(prefix, entries=PLAIN):
    return {prefix + name: value for name, value in entries.items()}


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "_orig_mod.module.", "module._orig_mod."])
def test_what_wrappers_put_before_names_goes_and_is_said(prefix):
    arrays, said = unwrapped("x.pth", prefixed(prefix))
    assert arrays == PLAIN
    assert len(said) == 1 and all(repr(f"{word}.") in said[0] for word in prefix[:-1].split("."))


@pytest.mark.parametrize("word", ["_orig_mod", "_checkpoint_wrapped_module", "_fsdp_wrapped_module"])
def test_what_wrappers_put_into_names_goes_and_is_said(word):
    arrays, said = unwrapped("x.pth", {n.replace("blocks.1.", f"blocks.1.{word}."): v for n, v in PLAIN.items()})
    assert arrays == PLAIN
    assert said == [f"names are taken without '{word}.'"]


@pytest.mark.parametrize(
    "prefix", ["model.", "backbone.", "encoder.", "model.backbone.", "net.vit.trunk.", "anything."]
)
def test_a_prefix_that_all_share_goes_whatever_it_is(prefix):
    for arrays, said, dropped in (fitting("x.pth", prefixed(prefix), PLAIN), likely(prefixed(prefix))):
        assert arrays == PLAIN
        assert (said, dropped) == ([f"names are taken without {prefix!r}"], [])


def test_of_a_detector_the_backbone_is_taken_and_the_rest_is_counted():
    heads = {"neck.a.weight": 0, "neck.b.weight": 0, "rpn_head.weight": 0}
    for arrays, _, dropped in (
        fitting("x.pth", {**prefixed("backbone."), **heads}, PLAIN),
        likely({**prefixed("backbone."), **heads}),
    ):
        assert arrays == PLAIN
        assert dropped == ["only what is under 'backbone.' was taken; left out: neck (2), rpn_head"]


def test_a_model_that_has_such_names_itself_keeps_them():
    own = prefixed("backbone.") | {"head.weight": 4}
    assert fitting("x.pth", own, own) == (own, [], [])


def test_two_models_in_one_are_asked_about():
    both = {**prefixed("base_encoder."), **prefixed("momentum_encoder.")}
    with pytest.raises(ValueError, match=r"under base_encoder\. and under momentum_encoder\.: choose one with key="):
        fitting("x.pth", both, PLAIN)


def test_prefixes_are_in_the_report():
    variables, report = load_with_report(prefixed("module.model.", weights()), tiny())
    equal(variables, load_weights(weights(), tiny()))
    assert str(report).endswith("  names are taken without 'module.'\n  names are taken without 'model.'")
    _, report = load_with_report({**prefixed("backbone.", weights()), "neck.weight": np.zeros(2)}, tiny())
    assert report.notes == ("only what is under 'backbone.' was taken; left out: neck",)


def test_a_detectors_norms_are_loaded_into_features_only():
    given = prefixed("backbone.", weights())
    for name in ("norm.weight", "norm.bias", "head.weight", "head.bias"):
        del given[f"backbone.{name}"]
    norms = {f"backbone.norm{i}.{leaf}": np.full(8, i + 2, np.float32) for i in (0, 1) for leaf in ("weight", "bias")}
    given = {**given, **norms, "decode_head.conv.weight": np.zeros(3)}
    variables, report = load_with_report(given, tiny(features_only=True, feature_norm=True))
    np.testing.assert_array_equal(variables["params"]["norm1"]["scale"], 3)
    assert report.made == ()
    with pytest.raises(
        ValueError, match=r"norm0\.weight says that they are of .*features_only=True, feature_norm=True"
    ):
        load_weights(given, tiny(features_only=True))


def test_where_nothing_fits_one_name_of_each_is_shown():
    given = {f"bb_{name}": array for name, array in weights().items()}
    with pytest.raises(ValueError) as error:
        load_weights(given, tiny())
    assert str(error.value).endswith(
        f"none of its {len(given)} names is one of the model's {len(given)}; "
        "there is 'bb_blocks.0.attn.dwc.bias', and wanted is 'blocks.0.attn.dwc.bias'"
    )


def timm(name):
    with np.load(Path(__file__).with_name("timm.npz")) as file:
        found = {key.removeprefix(f"{name}/"): file[key] for key in file.files if key.startswith(f"{name}/")}
    return found.pop("x"), found.pop("y"), found


@pytest.mark.parametrize("name", MODELS)
def test_timms_models_answer_as_in_timm(name):
    x, y, state = timm(name)
    *_, ours, options = MODELS[name]
    model = flatten_jax.create_model(ours, num_classes=3, **options)
    variables, report = load_with_report(prefixed("model.", state), model)
    assert report.made == report.notes == ()
    answer = jax.jit(model.apply, compiler_options={"xla_backend_optimization_level": 0})(
        variables, np.moveaxis(x, 1, 3)
    )
    np.testing.assert_allclose(answer, y, atol=1e-5 * np.abs(y).max())


def test_timms_mean_pooled_vit_is_guessed():
    found = model_of(
        prefixed("model.", {k: np.asarray(v, np.float32) for k, v in timm("vit_avg")[2].items()}), "deit_t"
    )
    assert found.name == "deit_t"
    with pytest.raises(ValueError, match=r"fc_norm\.weight says .*create_model\(\.\.\., fc_norm=True\)"):
        load_weights(timm("vit_avg")[2], tiny("deit_t", class_token=False))


def test_the_patches_of_openmmlabs_swin_are_merged_in_the_originals_order():
    """nn.Unfold gives channels, then rows, then columns; the original columns, then rows, then channels."""
    numbers = np.arange(24).reshape(2, 12)  # 3 channels, 2 x 2 patches
    given = {
        "patch_embed.projection.weight": 0,
        "stages.0.blocks.0.attn.w_msa.qkv.weight": 1,
        "stages.0.blocks.0.ffn.layers.0.0.weight": 2,
        "stages.0.blocks.0.ffn.layers.1.bias": 3,
        "stages.0.downsample.reduction.weight": numbers,
        "norm0.weight": 4,
    }
    arrays, said = renamed(given)
    assert said == ["names are OpenMMLab's of Swin"]
    reduction = arrays.pop("layers.0.downsample.reduction.weight")
    for column, row, channel in np.ndindex(2, 2, 3):
        np.testing.assert_array_equal(
            reduction[:, 6 * column + 3 * row + channel], numbers[:, 4 * channel + 2 * row + column]
        )
    assert arrays == {
        "patch_embed.proj.weight": 0,
        "layers.0.blocks.0.attn.qkv.weight": 1,
        "layers.0.blocks.0.mlp.fc1.weight": 2,
        "layers.0.blocks.0.mlp.fc2.bias": 3,
        "norm0.weight": 4,
    }


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("dist_token", "a distilled DeiT"),
        ("head_dist.weight", "a distilled DeiT"),
        ("reg_token", "register tokens"),
        ("blocks.3.ls1.gamma", "LayerScale, as DeiT III"),
        ("blocks.3.gamma_1", "LayerScale"),
        ("layers.0.blocks.0.attn.logit_scale", "Swin V2"),
        ("decoder_blocks.0.norm1.weight", "masked pre-training"),
        ("swin.encoder.layers.0.blocks.0.attention.self.query.weight", "Hugging Face's transformers"),
        ("features.0.0.weight", "torchvision"),
    ],
)
def test_models_that_are_not_here_are_named(name, said):
    assert f"{name} says that they are of a" in foreign_hint([name]) and said in foreign_hint([name])
    assert foreign_hint([name], [name]) == ""


@pytest.mark.parametrize("name", ["swin", "pvt_v2"])
def test_exports_whose_names_are_not_timms_say_so(name):
    state = timm(name)[2]
    assert "not timm's" in not_timms(renamed(state).arrays)
    assert not_timms(state) == ""


def test_every_such_hint_is_tested():
    assert len(_FOREIGN) == 9
    assert max(Counter(pattern for pattern, _ in _FOREIGN).values()) == 1
