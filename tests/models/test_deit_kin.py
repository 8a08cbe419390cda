"""What the DeiTs of MHLA, Hyena and SkipAt have of their own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import flatten_jax
from flatten_jax import create_model
from flatten_jax.models import abstract_variables
from flatten_jax.weights.layout import entries, layout

OWN = dict(embed_dim=12, num_heads=2, num_classes=10)


def random_variables(model, seed=0):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: (0.2 * rng.standard_normal(x.shape)).astype(np.float32), abstract_variables(model))


def random_state(model):
    rng = np.random.default_rng(0)
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in entries(layout(model)).items()}


# MHLA


def test_mhla_sees_the_padding_and_gives_maps_without_it():
    model = create_model("mhla_deit_t", **OWN, depth=1, image_size=(64, 96))
    maps = model.clone(features_only=True, out_indices=(0,))
    variables = random_variables(model)
    images = jax.random.normal(jax.random.key(0), (1, 64, 96, 3))

    @jax.jit
    def both(variables, images):
        return maps.apply(variables, images)[0], model.apply(variables, images, method="forward_features")

    level, tokens = both(variables, images)
    assert variables["params"]["pos_embed"].shape == (1, 48, 12)
    assert level.shape == (1, 4, 6, 12)
    np.testing.assert_allclose(level, tokens.reshape(1, 6, 8, 12)[:, 1:-1, 1:-1], rtol=1e-4, atol=1e-5)


def test_mhla_cuts_the_published_size_into_sixteen_blocks():
    params = abstract_variables(create_model("mhla_deit_t", depth=1))["params"]
    assert params["blocks_0"]["attn"]["piece_attn"].shape == (16, 16, 1, 1)
    with pytest.raises(ValueError, match=r"block_side=4 must divide the sides of grid=\(6, 6\)"):
        create_model("mhla_deit_t", **OWN, depth=1, image_size=64, block_side=4)


# Hyena


def test_hyenas_first_token_sees_the_picture_by_looking_down():
    """A picture is changed outside of its first patch."""
    own = dict(OWN, depth=2, image_size=(32, 48))
    turns, up = create_model("hyena_deit_t", **own), create_model("hyena_deit_t", **own, direction="standard")
    assert [turns.options_of(0, j)["direction"] for j in (0, 1)] == ["seq", "standard"]
    variables, images = random_variables(turns), jax.random.normal(jax.random.key(0), (2, 32, 48, 3))
    images = images.at[1, :16, :16].set(images[0, :16, :16])
    # The short filter of `up` does see neighbours, so what is changed lies beyond them.
    images = images.at[1, :, :32].set(images[0, :, :32])

    @jax.jit
    def logits(variables, images):
        return [model.apply(variables, images) for model in (turns, up, turns.clone(pooling="mean"))]

    down, flat, mean = (np.asarray(x) for x in logits(variables, images))
    for x in (down, mean):
        assert np.abs(x[0] - x[1]).max() > 1e-4 * np.abs(x).max()
    np.testing.assert_allclose(flat[0], flat[1], rtol=1e-4, atol=1e-5 * np.abs(flat).max())


@pytest.mark.parametrize("product", [False, True])
def test_hyenas_weights_are_written_with_what_the_original_holds_twice(product):
    model = create_model("hyena_deit_t", **OWN, depth=1, image_size=64, product_filter=product)
    state = random_state(model)
    written = flatten_jax.to_torch(flatten_jax.from_torch(state, model), model)
    filter_fn = "blocks.0.attn.filter_fn"
    more = {name.removeprefix(f"{filter_fn}.") for name in written.keys() - state.keys()}
    both = ("Xmodulation.deltas", "Ymodulation.deltas") if product else ("modulation.Xdeltas", "modulation.Ydeltas")
    first = "Yimplicit_filter.1.freq" if product else "implicit_filter.1.freq"
    copies = {f"{first[:-6]}{i}.freq" for i in (3, 5)} | {f"Ximplicit_filter.{i}.freq" for i in (1, 3, 5) if product}
    assert more == {"pos_emb.t", *both, *copies}
    for copy in copies:
        np.testing.assert_array_equal(written[f"{filter_fn}.{copy}"], state[f"{filter_fn}.{first}"])
    delta = written[f"{filter_fn}.{both[0]}"]
    assert delta.shape == (1, 1, 12)
    np.testing.assert_allclose(delta[0, 0, [0, -1]], np.log(0.01) / np.array([1.5, 0.3]), rtol=1e-6)
    assert written[f"{filter_fn}.pos_emb.t"].shape == (1, 4, 1)
    again = flatten_jax.from_torch(written, model)  # all that is more is left aside
    for name, array in flatten_jax.to_torch(again, model).items():
        np.testing.assert_array_equal(array, written[name])


# SkipAt

SKIP = dict(OWN, depth=3, image_size=(32, 48), attn_type="softmax*1+skipat*1+softmax")


def test_skipat_never_applies_the_attention_that_it_keeps():
    model, without = (
        create_model("skipat_deit_t", **SKIP),
        create_model("skipat_deit_t", **SKIP, unused_attention=False),
    )
    variables, images = random_variables(model), jax.random.normal(jax.random.key(0), (2, 32, 48, 3))
    attention = variables["params"]["blocks_1"]["attn"]
    assert set(attention) == {"qkv", "proj", "linear1_0", "dwconv_0", "linear2_0", "eca_conv"}
    assert "qkv" not in abstract_variables(without)["params"]["blocks_1"]["attn"]

    @jax.jit
    def both(variables, images):
        def loss(variables):
            return (model.apply(variables, images) ** 2).sum()

        fewer = {k: v for k, v in attention.items() if k not in ("qkv", "proj")}
        blocks = {**variables["params"], "blocks_1": {**variables["params"]["blocks_1"], "attn": fewer}}
        return model.apply(variables, images), without.apply({"params": blocks}, images), jax.grad(loss)(variables)

    kept, left, gradients = both(variables, images)
    np.testing.assert_allclose(kept, left, rtol=1e-5)
    gradients = gradients["params"]["blocks_1"]["attn"]
    assert {name for name, of in gradients.items() if not any(g.any() for g in jax.tree.leaves(of))} == {"qkv", "proj"}


def test_skipat_has_the_originals_names():
    model = create_model("skipat_deit_t", embed_dim=12, num_heads=2, image_size=32)
    state = random_state(model)
    assert {f"param_{k}.eca.conv.weight" for k in range(1, 7)} <= set(state)
    assert "blocks.3.attn.qkv.weight" in state
    assert not any(name.startswith("blocks.3.attn.linear") for name in state)
    written = flatten_jax.to_torch(flatten_jax.from_torch(state, model), model)
    assert written.keys() == state.keys()
    for name, array in written.items():
        np.testing.assert_array_equal(array, state[name])


@pytest.mark.parametrize("name", ["mhla_deit_t", "hyena_deit_t", "skipat_deit_t"])
def test_bfloat16_and_other_attentions_have_a_place(name):
    options = dict(SKIP if name.startswith("skipat") else dict(OWN, depth=2, image_size=(32, 48)))
    half = create_model(name, **options, dtype="bfloat16", remat=True, drop_path=0.5)
    images = jnp.zeros((2, 32, 48, 3))

    def loss(variables, key):
        return half.apply(variables, images, train=True, rngs={"dropout": key}).sum()

    jax.eval_shape(jax.grad(loss), abstract_variables(half), jax.random.key(0))
    maps = half.clone(features_only=True)
    assert {x.dtype for x in jax.eval_shape(maps.apply, abstract_variables(maps), images)} == {jnp.dtype("bfloat16")}
    create_model(name, **{**options, "attn_type": "softmax/linear"}, scan=True)
