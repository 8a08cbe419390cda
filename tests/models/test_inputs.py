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
    with pytest.raises(ValueError, match=r"has none of deit_t, but of flatten_cswin_t, .*load_weights\(FILE, model\)"):
        flatten_jax.create_model("deit_t", pretrained=True)
    assert flatten_jax.create_model("flatten_deit_t", pretrained=False, **TINY)


def test_the_list_of_models_shows_links_and_the_way_to_a_prediction(capsys):
    main(["models", "flatten_pvt_t"])
    printed = capsys.readouterr().out
    assert f"flatten_pvt_t          {PUBLISHED['flatten_pvt_t'].weights}" in printed
    assert (
        "flatten-jax predict --from flatten_pvt_t.pth PICTURES, or load_weights('flatten_pvt_t.pth', model)" in printed
    )
