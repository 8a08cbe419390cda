"""ViG: sizes of its stem, widths, initial values, the names of the hierarchical one's head, half precision."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import flatten_jax
from flatten_jax import create_model
from flatten_jax.attention import Site
from flatten_jax.attention.gla import GLA
from flatten_jax.models import abstract_variables
from flatten_jax.models.vig import rounded_up
from flatten_jax.weights.layout import entries, layout

SMALL = {
    "vig_t": dict(depth=1, embed_dim=16, num_heads=2, image_size=(32, 48), num_classes=10),
    "vig_h_t": dict(depths=(1, 1), embed_dim=8, num_heads=(1, 2), image_size=(32, 48), num_classes=10),
}


def small(name, **options):
    return create_model(name, **{**SMALL[name], **options})


@pytest.mark.parametrize(("size", "grid"), [((7, 22), (1, 1)), ((200, 248), (13, 16)), ((192, 256), (12, 16))])
def test_the_stem_of_the_plain_one_floors(size, grid):
    model = small("vig_t", image_size=size, features_only=True, out_indices=(0,))
    variables = abstract_variables(model)
    (level,) = jax.eval_shape(model.apply, variables, jnp.zeros((1, *size, 3)))
    assert level.shape[1:3] == grid
    assert variables["params"]["pos_embed"].shape == (1, grid[0] * grid[1], 16)


def test_an_image_without_a_token_is_refused():
    with pytest.raises(ValueError, match=r"image_size=\(6, 32\) is too small for this stem: give it 7 or more"):
        small("vig_t", image_size=(6, 32))


def test_the_stages_of_the_hierarchical_one_round_up():
    deep = dict(depths=(1, 1, 1, 1), num_heads=(1, 1, 2, 2))
    model = small("vig_h_t", **deep, image_size=(75, 101), features_only=True, feature_norm=True)
    maps = jax.eval_shape(model.apply, abstract_variables(model), jnp.zeros((1, 75, 101, 3)))
    assert [x.shape[1:] for x in maps] == [(19, 26, 8), (10, 13, 16), (5, 7, 32), (3, 4, 64)]


def test_widths_of_the_gated_mlp_are_the_papers():
    assert [rounded_up(8 / 3 * width, 256) for width in (192, 384, 768)] == [512, 1024, 2048]
    assert [rounded_up(8 / 3 * width, 32) for width in (96, 128, 256)] == [256, 352, 704]


@pytest.mark.parametrize("xavier", ["", "conv", "all"])
def test_initial_values_of_the_mixer(xavier):
    x = jnp.zeros((1, 4, 64))
    params = GLA(num_heads=2, xavier_init=xavier).init(jax.random.key(0), x, Site((2, 2)))["params"]
    for name, fans in {"qkv_proj": (64, 128), "g_proj": (64, 64), "in_proj_0": (9, 9 * 64)}.items():
        kernel, of_conv = np.asarray(params[name]["kernel"]), name == "in_proj_0"
        if xavier == "all" or (of_conv and xavier):
            bound = 2**-2.5 * (6 / sum(fans)) ** 0.5
        elif of_conv:
            bound = 1 / 3
        else:
            assert kernel.std() == pytest.approx(0.02, rel=0.1)
            continue
        assert 0.97 * bound < np.abs(kernel).max() <= bound


def test_the_head_of_the_hierarchical_one_is_known_by_the_originals_name():
    model, other = small("vig_h_t"), small("vig_h_t", num_classes=5)
    assert {"classifier.norm.weight", "classifier.head.weight"} <= set(entries(layout(model)))
    rng = np.random.default_rng(0)
    state = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in entries(layout(model)).items()}
    variables = flatten_jax.from_torch(state, model)
    for name, array in flatten_jax.to_torch(variables, model).items():
        np.testing.assert_array_equal(array, state[name])
    new = flatten_jax.load_weights(state, other, new_head=True)
    assert new["params"]["head"]["kernel"].shape == (16, 5)
    np.testing.assert_array_equal(new["params"]["norm"]["bias"], state["classifier.norm.bias"])


@pytest.mark.parametrize("name", SMALL)
def test_bfloat16_is_near(name):
    models = [small(name), small(name, dtype="bfloat16", remat=True)]
    rng = np.random.default_rng(0)
    variables = jax.tree.map(
        lambda x: (0.2 * rng.standard_normal(x.shape) + (x.ndim == 1)).astype(np.float32), abstract_variables(models[0])
    )
    images = jax.random.normal(jax.random.key(1), (2, 32, 48, 3))
    exact, near = jax.jit(lambda *args: [model.apply(*args) for model in models])(variables, images)
    np.testing.assert_allclose(near, exact, atol=0.03 * np.abs(exact).max())
    maps = jax.eval_shape(small(name, dtype="bfloat16", features_only=True).apply, variables, images)
    assert {x.dtype for x in maps} == {jnp.dtype("bfloat16")}


@pytest.mark.parametrize("name", SMALL)
def test_other_attentions_have_a_place(name):
    model = small(name, attn_type="softmax", drop_path=0.5, remat=True, scan=True)

    def loss(variables, key):
        return model.apply(variables, jnp.zeros((2, 32, 48, 3)), train=True, rngs={"dropout": key}).sum()

    gradients = jax.eval_shape(jax.grad(loss), abstract_variables(model), jax.random.key(0))
    assert "qkv" in str(jax.tree.structure(gradients))
