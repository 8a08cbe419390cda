"""Long Range Arena's encoder: official sizes, tokens that only fill up, dropout, what it refuses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import flatten_jax
from flatten_jax import create_model, num_params
from flatten_jax.attention import ATTENTIONS
from flatten_jax.models import abstract_variables
from flatten_jax.models.lra import sines


def size(vocabulary, length, embed, qkv, depth, mlp, classes, learned, class_token):
    """Parameters by the official code: projections of the attention have no bias, all other layers have one."""
    block = 2 * 2 * embed + 4 * embed * qkv + (embed + 1) * mlp + (mlp + 1) * embed
    positions = (length + class_token) * embed * learned
    head = (embed + 1) * mlp + (mlp + 1) * classes
    return vocabulary * embed + class_token * embed + positions + depth * block + 2 * embed + head


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("lra_image", (256, 1024, 128, 64, 1, 128, 10, True, True)),
        ("lra_pathfinder", (256, 1024, 32, 16, 4, 32, 2, False, False)),
        ("lra_pathfinder_linear", (256, 1024, 128, 64, 1, 128, 2, False, False)),
        ("lra_listops", (16, 2000, 512, 512, 4, 1024, 10, False, True)),
    ],
)
def test_sizes_are_the_official_ones(name, shape):
    assert num_params(create_model(name)) == size(*shape)
    assert num_params(create_model(name, attn_type="linear")) == size(*shape)


TINY = dict(embed_dim=16, qkv_dim=8, depth=2, num_heads=2, num_classes=3)


@pytest.mark.parametrize("attention", [name for name, cls in ATTENTIONS.items() if cls.takes_mask])
def test_what_fills_up_does_not_count(attention):
    """The same logits for 20 tokens alone and filled up to 32."""
    tokens = jax.random.randint(jax.random.key(0), (2, 20), 1, 16)
    models = [
        create_model("lra_listops", **TINY, attn_type=attention, image_size=(1, n), mlp_ratio=1.0) for n in (20, 32)
    ]
    variables = jax.jit(models[1].init)(jax.random.key(1), jnp.pad(tokens, ((0, 0), (0, 12))))
    short, padded = (
        model.apply(variables, jnp.pad(tokens, ((0, 0), (0, n)))) for model, n in zip(models, (0, 12), strict=True)
    )
    np.testing.assert_allclose(short, padded, atol=1e-5)
    changed = models[1].apply(variables, jnp.pad(tokens, ((0, 0), (0, 12)), constant_values=1))
    assert np.abs(changed - padded).max() > 1e-4  # tokens that are there do


def test_those_that_cannot_leave_out_tokens_are_refused():
    for attention in ("agent", "focused", "mlla_core", "cosformer"):
        with pytest.raises(
            ValueError, match=r"cannot leave out what fills up .*those that do: .*linear.*softmax"
        ) as said:
            create_model("lra_listops", **TINY, attn_type=attention, image_size=(1, 16))
        assert "\n" not in str(said.value)
    with pytest.raises(ValueError, match="padded=True needs class_token=True"):
        create_model("lra_listops", **TINY, class_token=False, image_size=(1, 16))


# Those that look at the tokens themselves, which are wider than what is inside of the attention.
LOOKS = [name for name, cls in ATTENTIONS.items() if not cls.streams and not cls.takes_before]


@pytest.mark.parametrize("attention", [*LOOKS, "inline", "linformer", "vicinity", "polaformer"])
def test_any_attention_fits_the_grid_of_pixels(attention):
    options = {**TINY, "depth": 1, "qkv_dim": 16, "embed_dim": 24}
    model = create_model("lra_pathfinder", **options, attn_type=attention, image_size=16, dropout=0.0)
    shapes = abstract_variables(model)["params"]["blocks_0"]["attn"]
    assert ("narrow" in shapes) == (ATTENTIONS[attention].streams == "")


def test_what_takes_the_attention_before_is_given_it_as_wide_as_the_tokens():
    options = dict(TINY, image_size=4, dropout=0.0, num_classes=2)
    model = create_model("lra_pathfinder", **options, attn_type="softmax*1+skipat")
    layers = abstract_variables(model)["params"]["blocks_1"]["attn"]
    assert not {"narrow", "widen"} & set(layers)
    assert layers["linear1_0"]["kernel"].shape == (16, 32)  # C = 16, not the 8 of qkv_dim
    variables = flatten_jax.init(model)
    tokens = jax.random.randint(jax.random.key(0), (2, 16), 0, 256)
    there = model.apply(variables, tokens)
    proj = variables["params"]["blocks_0"]["attn"]["proj"]
    proj["kernel"] = 2 * proj["kernel"]
    assert there.shape == (2, 2) and np.abs(model.apply(variables, tokens) - there).max() > 1e-5


def test_dropout_is_there_in_training_alone_and_in_a_loop_too():
    tokens = jax.random.randint(jax.random.key(0), (2, 16), 0, 256)
    plain, loop = (
        create_model("lra_pathfinder", **TINY, image_size=4, attn_type="linear", dropout=0.5, scan=scan)
        for scan in (False, True)
    )
    variables = flatten_jax.init(plain)
    still = plain.apply(variables, tokens)
    np.testing.assert_allclose(loop.apply(variables, tokens), still, atol=1e-5)
    for model in (plain, loop):
        one, two = (model.apply(variables, tokens, train=True, rngs={"dropout": jax.random.key(k)}) for k in (0, 1))
        assert np.abs(one - two).max() > 1e-3 and np.abs(one - still).max() > 1e-3


@pytest.mark.parametrize(
    ("tokens", "said"),
    [
        (
            jnp.zeros((1, 4, 4, 3)),
            r"takes whole numbers \(B, 16\) below 256, the tokens of a grid 4 x 4, and no pictures",
        ),
        (jnp.zeros((1, 9), jnp.int32), r"int32 \(1, 9\) was given"),
        (jnp.zeros((1, 16)), r"float32 \(1, 16\) was given"),
    ],
)
def test_what_is_no_tokens_is_refused(tokens, said):
    model = create_model("lra_pathfinder", **TINY, image_size=4)
    with pytest.raises(ValueError, match=said):
        jax.eval_shape(model.apply, abstract_variables(model), tokens)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"drop_path": 0.1}, "'drop_path' has no effect"),
        ({"patch_size": 2}, "'patch_size' has no effect"),
        ({"dropout": 1.0}, r"dropout=1.0 must be in \[0, 1\)"),
        ({"num_heads": 3}, "channels=8 is not divisible by num_heads=3"),
        ({"attn_type": "focused", "class_token": True}, "takes no class token"),
    ],
)
def test_a_wrong_option_is_refused(options, said):
    with pytest.raises(ValueError, match=said):
        create_model("lra_pathfinder", **{**TINY, "image_size": 4, **options})


def test_positions_are_sines_and_cosines_in_turn():
    expected = [[0, 1, 0, 1], [np.sin(1), np.cos(1), np.sin(0.01), np.cos(0.01)]]
    np.testing.assert_allclose(sines(2, 4), expected, atol=1e-7)
