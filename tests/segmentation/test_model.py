"""Segmenters: shapes, names, weights of others, other image sizes."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import flatten_jax
from flatten_jax.data.source import Example
from flatten_jax.models import abstract_variables, multiply_adds
from flatten_jax.segmentation.create import split
from flatten_jax.segmentation.model import resize_logits
from flatten_jax.segmentation.predict import PixelPredictor
from flatten_jax.segmentation.transforms import EvalTransform
from flatten_jax.weights.layout import entries, layout
from flatten_jax.weights.load import load_with_report
from flatten_jax.weights.segmenter import variables_at

SWIN = dict(embed_dim=8, num_heads=(1, 1, 1, 1), depths=(1, 1, 1, 1))
PVT = dict(embed_dims=(8, 8, 8, 8), num_heads=(1, 1, 1, 1), depths=(1, 1, 1, 1))


@functools.cache
def swin(**options):
    options = {"image_size": 64, "channels": 8, "num_classes": 3, **SWIN, **options}
    return flatten_jax.create_segmenter("flatten_swin_t", "upernet", **options)


@functools.cache
def pvt(**options):
    options = {"image_size": 64, "channels": 8, "num_classes": 3, **PVT, **options}
    return flatten_jax.create_segmenter("flatten_pvt_t", "semfpn", **options)


def drawn(model):
    """Variables of a model at random, of norms and statistics about 1; quicker than compiling `init`."""
    rng = np.random.default_rng(0)

    def draw(path, leaf):
        numbers = rng.normal(scale=0.3, size=leaf.shape).astype(np.float32)
        return 1 + np.abs(numbers) if path[-1].key == "var" or (path[-1].key == "scale" and leaf.ndim == 1) else numbers

    return jax.tree_util.tree_map_with_path(draw, abstract_variables(model))


def shapes(model):
    return jax.tree.map(lambda leaf: leaf.shape, abstract_variables(model))


def equal(a, b):
    return jax.tree.all(jax.tree.map(np.array_equal, a, b))


def images(model, batch=1):
    return np.random.default_rng(1).normal(size=(batch, *model.image_size, 3)).astype(np.float32)


def test_logits_are_of_the_first_map_and_the_auxiliary_ones_of_the_third():
    model = swin(dtype="bfloat16")
    variables, x = abstract_variables(model), jax.ShapeDtypeStruct((2, 64, 64, 3), np.float32)
    logits = jax.eval_shape(model.apply, variables, x)
    assert (logits.shape, logits.dtype) == ((2, 16, 16, 3), jnp.float32)
    train = functools.partial(model.apply, train=True, mutable=["batch_stats"], rngs={"dropout": jax.random.key(0)})
    (logits, auxiliary), changed = jax.eval_shape(train, variables, x)
    assert (logits.shape, auxiliary.shape) == ((2, 16, 16, 3), (2, 4, 4, 3))
    assert jax.tree.structure(changed) == jax.tree.structure({"batch_stats": variables["batch_stats"]})
    alone = swin(auxiliary=False)
    assert "auxiliary_head" not in abstract_variables(alone)["params"]


def test_a_whole_segmenter_has_the_papers_size():
    """60 million with Swin-T, of which the heads are known exactly (test_heads)."""
    whole = flatten_jax.create_segmenter("flatten_swin_t")
    assert flatten_jax.num_params(whole) == 59_942_724
    variables = abstract_variables(whole)["params"]
    assert {"norm0", "norm1", "norm2", "norm3"} < set(variables["backbone"])
    assert "positional_encoding" not in variables["backbone"]["layers_0"]["blocks_0"]["attn"]
    windows = variables["backbone"]["layers_2"]["blocks_0"]["attn"]["relative_position_bias_table"]
    assert windows.shape == (13 * 13, 12)


def test_names_are_mmsegmentations():
    names = {name for name in entries(layout(swin())) if not name.startswith("backbone.")}
    blocks = ["decode_head.bottleneck", "decode_head.fpn_bottleneck", "auxiliary_head.convs.0"]
    blocks += [f"decode_head.psp_modules.{i}.1" for i in range(4)]
    blocks += [f"decode_head.{kind}_convs.{i}" for kind, i in itertools.product(("lateral", "fpn"), range(3))]
    leaves = ("conv.weight", "bn.weight", "bn.bias", "bn.running_mean", "bn.running_var")
    classifiers = {f"{head}.conv_seg.{x}" for head in ("decode_head", "auxiliary_head") for x in ("weight", "bias")}
    assert names == {f"{block}.{leaf}" for block in blocks for leaf in leaves} | classifiers

    names = {name for name in entries(layout(pvt())) if not name.startswith("backbone.")}
    blocks = [
        f"decode_head.scale_heads.{i}.{2 * j}" for i, j in ((0, 0), (1, 0), (2, 0), (2, 1), (3, 0), (3, 1), (3, 2))
    ]
    necks = {f"neck.{kind}_convs.{i}.conv" for kind, i in itertools.product(("lateral", "fpn"), range(4))}
    assert names == {
        *(f"{block}.{leaf}" for block in blocks for leaf in leaves),
        *(f"{neck}.{x}" for neck in necks for x in ("weight", "bias")),
        "decode_head.conv_seg.weight",
        "decode_head.conv_seg.bias",
    }


def test_a_state_dict_goes_round_and_a_new_classifier_can_be_made():
    model, variables = swin(), drawn(swin())
    saved = {"meta": {"epoch": 1}, "state_dict": flatten_jax.to_torch(variables, model)}
    saved["state_dict"]["decode_head.bottleneck.bn.num_batches_tracked"] = np.array(3)
    assert equal(flatten_jax.load_weights(saved, model), variables)
    without = flatten_jax.load_weights(saved, swin(auxiliary=False))
    assert equal(without["params"]["decode_head"], variables["params"]["decode_head"])

    other = swin(num_classes=5)
    with pytest.raises(ValueError, match="the weights have 3 classes, the model 5: new_head=True"):
        flatten_jax.load_weights(saved, other)
    _, report = load_with_report(saved, other, new_head=True)
    heads = {f"{head}.conv_seg.{leaf}" for head in ("decode_head", "auxiliary_head") for leaf in ("weight", "bias")}
    assert set(report.made) == heads


def test_a_segmenter_with_openmmlabs_names_of_swin_is_read():
    model, variables = swin(), drawn(swin())
    new = {
        "layers.": "stages.",
        ".attn.": ".attn.w_msa.",
        ".mlp.fc1.": ".ffn.layers.0.0.",
        ".mlp.fc2.": ".ffn.layers.1.",
        ".proj.": ".proj.",
        "patch_embed.proj.": "patch_embed.projection.",
    }
    renamed = {}
    for name, array in flatten_jax.to_torch(variables, model).items():
        for ours, theirs in new.items() if name.startswith("backbone.") else ():
            name = name.replace(ours, theirs)
        renamed[name] = array
    found, report = load_with_report(renamed, model)
    assert any("OpenMMLab" in line for line in report.remarks)
    merging = found["params"]["backbone"]["layers_0"].pop("downsample")
    theirs = variables["params"]["backbone"]["layers_0"].pop("downsample")
    for level in ("layers_1", "layers_2"):
        found["params"]["backbone"][level].pop("downsample")
        variables["params"]["backbone"][level].pop("downsample")
    assert equal(found, variables)
    assert not equal(merging, theirs)  # which their code orders otherwise, see tests/weights/test_names.py


def test_a_classifier_becomes_a_backbone():
    classifier = flatten_jax.create_model("flatten_swin_t", image_size=32, num_classes=7, **SWIN)
    variables = drawn(classifier)
    saved = flatten_jax.to_torch(variables, classifier)
    found, report = load_with_report(saved, swin())
    assert shapes(swin()) == jax.tree.map(np.shape, found)
    ours, theirs = found["params"]["backbone"], variables["params"]
    assert equal(ours["layers_0"]["blocks_0"]["mlp"], theirs["layers_0"]["blocks_0"]["mlp"])
    assert equal(ours["layers_0"]["downsample"], theirs["layers_0"]["downsample"])
    tables = {name for name in saved if name.endswith("positional_encoding")}
    assert len(tables) == 2 and tables < set(report.ignored)
    assert {"decode_head (62)", "auxiliary_head (7)", "norm0.weight"} < set(report.made)

    resized, report = load_with_report(variables, swin(k_position="resize"), saved=classifier)
    table = resized["params"]["backbone"]["layers_0"]["blocks_0"]["attn"]["positional_encoding"]
    assert table.shape == (1, 16 * 16, 8)
    name = "layers_0/blocks_0/attn/positional_encoding"
    assert report.resampled[name] == ((1, 8 * 8, 8), (1, 16 * 16, 8))


def test_no_parameter_of_flatten_swin_depends_on_the_image_size():
    small, large = swin(image_size=(256, 256)), swin(image_size=(256, 256)).at_size((250, 333))
    assert shapes(small) == shapes(large)
    variables = drawn(small)
    assert variables_at(small, variables, large)["params"] is variables["params"]
    with_table = swin(image_size=(256, 256), k_position="resize")
    assert shapes(with_table) != shapes(with_table.at_size((250, 333)))


def test_pictures_are_padded_to_whole_strides_where_the_backbone_wants_them():
    model, variables = pvt(), drawn(pvt())
    other = model.at_size((50, 70))
    assert (other.image_size, other.backbone.image_size) == ((50, 70), (64, 96))
    fitted = variables_at(model, variables, other)
    assert fitted["params"]["backbone"]["pos_embed1"].shape == (1, 16 * 24, 8)
    x = images(other)
    found = jax.jit(other.apply)(fitted, x)
    assert found.shape == (1, 13, 18, 3)
    whole = model.at_size((64, 96))
    padded = np.pad(x, ((0, 0), (0, 14), (0, 26), (0, 0)))
    np.testing.assert_allclose(found, jax.jit(whole.apply)(fitted, padded)[:, :13, :18], rtol=1e-4, atol=1e-4)
    assert swin().at_size((50, 70)).backbone.image_size == (50, 70)  # which pads by itself
    with pytest.raises(ValueError, match=r"image_size=\(50, 70\)"):
        other.apply(fitted, padded)


def test_pictures_of_any_size_are_predicted():
    """Whole: logits resized to the resized picture, then to the picture, and the largest."""
    model, variables = pvt(), drawn(pvt())
    picture = np.random.default_rng(2).integers(0, 256, (45, 100, 3), np.uint8)
    predict = PixelPredictor(model, variables, EvalTransform((64, 256), multiple=1))
    resized = predict.transform.resized_size((45, 100))
    answer, fitted = predict._at(resized)
    windows = predict.transform.windows(Example(picture, None, ""))
    fitted["params"]["decode_head"]["conv_seg"]["bias"] -= answer(fitted, windows).mean((0, 1, 2))  # every class wins
    logits, ids = answer(fitted, windows), predict(picture)
    assert (ids.shape, ids.dtype) == ((45, 100), np.uint8)
    assert set(np.unique(ids)) == {0, 1, 2}
    expected = resize_logits(resize_logits(logits, resized), (45, 100))[0]
    assert (np.asarray(expected.argmax(-1)) == ids).mean() > 0.999  # near-ties may round otherwise
    by_windows = PixelPredictor(model, variables, EvalTransform((64, 256), (64, 64), 32))
    assert by_windows(picture).shape == (45, 100)


def test_multiply_adds_are_those_of_the_backbone_and_the_heads_convolutions():
    model = pvt()
    grids = [16, 8, 4, 2]
    neck = sum(n * n * (8 * 256 + 9 * 256 * 256) for n in grids)
    first = sum(n * n * 9 * 256 * 8 for n in grids)
    doubled = 8 * 8 * 9 * 8 * 8 + (4 * 4 + 8 * 8) * 9 * 8 * 8
    assert multiply_adds(model) - multiply_adds(model.backbone) == neck + first + doubled + 16 * 16 * 8 * 3


def test_segmenters_have_names_where_models_are_measured():
    assert split("upernet_flatten_swin_t") == ("upernet", "flatten_swin_t")
    assert split("flatten_swin_t") == ("", "flatten_swin_t")


def test_what_does_not_fit_is_refused():
    create = flatten_jax.create_segmenter
    with pytest.raises(ValueError, match="head='fcn' must be one of upernet, semfpn"):
        create("swin_t", "fcn")
    with pytest.raises(ValueError, match="deit_t has maps of strides 16, 16, 16, 16: a head needs strides that double"):
        create("deit_t", image_size=32)
    with pytest.raises(ValueError, match="k_position='none' has no effect on swin_t"):
        create("swin_t", k_position="none")
    with pytest.raises(ValueError, match="num_classes=0 must be at least 1"):
        create("swin_t", num_classes=0)
    with pytest.raises(ValueError, match=r"with head='semfpn', the model has 'upernet'"):
        load_with_report(drawn(pvt()), pvt().clone(head="upernet"), saved=pvt())
