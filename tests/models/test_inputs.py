"""What a model says to images that it does not take, to `pretrained`, and what it starts from."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import flatten_jax
from flatten_jax.cli.main import main
from flatten_jax.models import PUBLISHED, abstract_variables

TINY = dict(embed_dim=8, depth=1, num_heads=2, patch_size=4, image_size=16, num_classes=3)


@pytest.mark.parametrize(
    ("shape", "dtype", "said"),
    [
        ((2, 3, 16, 16), np.float32, r"channels first: give \(B, height, width, 3\), x\.transpose\(0, 2, 3, 1\)"),
        ((16, 16, 3), np.float32, r"one image: give a batch of it, images\[None\]"),
        ((2, 16, 16, 1), np.float32, r"\(2, 16, 16, 1\) were given: .* in RGB"),
        ((2, 16, 16, 3), np.uint8, r"uint8 were given: .* flatten_jax\.normalize\(images\)"),
        ((2, 16, 16, 3), np.int32, r"int32 were given"),
        ((2, 8, 16, 3), np.float32, r"\(8, 16\) were given to a model of image_size=\(16, 16\): resize them"),
    ],
)
def test_images_of_another_kind_are_told_what_to_do(shape, dtype, said):
    model = flatten_jax.create_model("flatten_deit_t", **TINY)
    with pytest.raises(ValueError, match=said):
        jax.eval_shape(model.apply, abstract_variables(model), jax.ShapeDtypeStruct(shape, dtype))


def test_normalize_makes_of_pixels_what_a_model_takes():
    white = flatten_jax.normalize(np.full((1, 2, 2, 3), 255, np.uint8))
    assert white.dtype == jnp.float32
    np.testing.assert_allclose(white[0, 0, 0], [2.2489, 2.4286, 2.64], atol=1e-4)


@pytest.mark.parametrize(
    ("images", "said"),
    [
        (np.zeros((2, 3, 8, 8), np.uint8), r"\(2, 3, 8, 8\) were given: .*transpose\(0, 2, 3, 1\)"),
        (np.full((2, 8, 8, 3), 0.5), r"from 0 to 0\.5 were given: .* so 255 \* images"),
    ],
)
def test_normalize_refuses_what_it_would_spoil(images, said):
    with pytest.raises(ValueError, match=said):
        flatten_jax.normalize(images)
    flatten_jax.normalize(np.full((1, 2, 2, 3), 0.5) * 255)
    jax.eval_shape(flatten_jax.normalize, jax.ShapeDtypeStruct((1, 2, 2, 3), np.float32))


def test_the_functions_of_the_readme_are_public():
    for name in ("focused_map", "linear_attention", "depthwise_conv", "normalize", "init"):
        assert name in flatten_jax.__all__ and callable(getattr(flatten_jax, name))


def test_init_gives_the_models_own_initial_values():
    model = flatten_jax.create_model("flatten_deit_t", **TINY)
    expected = model.init(jax.random.key(5), jnp.zeros((1, 16, 16, 3)))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), flatten_jax.init(model, 5), expected)


def test_pretrained_says_where_weights_are():
    with pytest.raises(ValueError) as error:
        flatten_jax.create_model("flatten_swin_t", pretrained=True)
    assert PUBLISHED["flatten_swin_t"].weights in str(error.value)
    assert "flatten_jax.load_weights('flatten_swin_t.pth', flatten_jax.create_model('flatten_swin_t'))" in str(
        error.value
    )
    with pytest.raises(ValueError, match=r"weights of deit_t are known.*jax models.*load_weights\(FILE, model\)"):
        flatten_jax.create_model("deit_t", pretrained=True)
    assert flatten_jax.create_model("flatten_deit_t", pretrained=False, **TINY)


@pytest.mark.parametrize("option", ["pretrained", "checkpoint_path"])
def test_weights_are_another_call_which_is_said_in_one_line(option, tmp_path):
    with pytest.raises(ValueError) as error:
        flatten_jax.create_model("flatten_swin_t", **{option: "hf://owner/name"}, num_classes=7)
    said = str(error.value)
    assert said.startswith(f"{option}='hf://owner/name': create_model gives a module without weights")
    assert "model, variables = flatten_jax.from_pretrained('hf://owner/name', num_classes=7) gives both" in said
    by_name = "flatten_jax.create_model('flatten_swin_t', num_classes=7)"
    assert said.endswith(f"flatten_jax.load_weights('hf://owner/name', {by_name})") and "\n" not in said
    with pytest.raises(ValueError, match=f"from_pretrained\\('{tmp_path}'\\)"):
        flatten_jax.create_model("flatten_swin_t", **{option: tmp_path})
    assert flatten_jax.create_model("flatten_deit_t", **{option: ""}, **TINY)


def test_a_repository_is_no_name_of_a_model():
    with pytest.raises(ValueError, match=r"'hf-hub:owner/name' is no name.*from_pretrained\('owner/name'\) gives both"):
        flatten_jax.create_model("hf-hub:owner/name")


def test_parameters_are_counted_and_statistics_are_not():
    model = flatten_jax.create_model("flatten_deit_t", **TINY)
    variables = jax.tree.map(lambda leaf: np.zeros(leaf.shape), abstract_variables(model))
    counts = [flatten_jax.num_params(x) for x in (model, variables, variables["params"])]
    assert counts == [sum(leaf.size for leaf in jax.tree.leaves(variables))] * 3
    assert flatten_jax.num_params({**variables, "batch_stats": {"mean": np.zeros(9)}}) == counts[0]


def test_a_summary_has_every_level_and_adds_up():
    model = flatten_jax.create_model("flatten_deit_t", **{**TINY, "depth": 2})
    head, *rows = (line.split() for line in flatten_jax.summary(model).splitlines())
    assert head == ["level", "map", "parameters"]
    assert [row[:-1] for row in rows] == [
        ["blocks.0", "4", "x", "4", "x", "8"],
        ["blocks.1", "4", "x", "4", "x", "8"],
        ["head,", "norm", "3"],
        ["all"],
    ]
    counts = [int(row[-1].replace(",", "")) for row in rows]
    assert sum(counts[:-1]) == counts[-1] == flatten_jax.num_params(model)
    assert counts[2] == (8 + 1) * 3 + 2 * 8


def test_the_list_of_models_shows_links_and_the_way_to_a_prediction(capsys):
    main(["models", "flatten_pvt_t"])
    printed = capsys.readouterr().out
    assert f"flatten_pvt_t {PUBLISHED['flatten_pvt_t'].weights}" in printed
    assert (
        "flatten-jax predict --from flatten_pvt_t.pth PICTURES, or load_weights('flatten_pvt_t.pth', model)" in printed
    )
