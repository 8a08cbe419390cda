"""DeiT with a second token and head, as timm has it: names, positions, what each head sees, its weights."""

import jax
import numpy as np
import pytest

import flatten_jax
from flatten_jax import create_model
from flatten_jax.attention import ATTENTIONS
from flatten_jax.models import abstract_variables
from flatten_jax.weights.guess import guess_model

OWN = dict(embed_dim=8, num_heads=2, depth=2, patch_size=4, image_size=16, num_classes=3)


def random_variables(model):
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda x: rng.standard_normal(x.shape).astype(np.float32), abstract_variables(model))


def test_names_are_those_of_timm():
    model, plain = create_model("deit_t_distilled", **OWN), create_model("deit_t", **OWN)
    ours, theirs = (flatten_jax.to_torch(random_variables(m), m) for m in (model, plain))
    assert ours.keys() - theirs.keys() == {"dist_token", "head_dist.weight", "head_dist.bias"}
    assert (ours["dist_token"].shape, ours["pos_embed"].shape) == ((1, 1, 8), (1, 2 + 16, 8))
    assert ours["head_dist.weight"].shape == (3, 8)
    assert create_model("deit_tiny_distilled_patch16_224", **OWN) == model


def test_each_head_sees_its_token_and_the_logits_are_their_mean():
    model = create_model("deit_t_distilled", **OWN)
    variables, images = random_variables(model), jax.random.normal(jax.random.key(0), (2, 16, 16, 3))

    @jax.jit
    def all_of(v):
        heads = model.apply(v, images, method="logits_of_heads")
        return heads, model.apply(v, images), model.apply(v, images, method="forward_features")

    heads, logits, tokens = all_of(variables)
    for i, name in enumerate(("head", "head_dist")):
        own = variables["params"][name]
        np.testing.assert_allclose(heads[i], tokens[:, i] @ own["kernel"] + own["bias"], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(logits, (heads[0] + heads[1]) / 2, rtol=1e-6)
    pooled = create_model("deit_t_distilled", **{**OWN, "num_classes": 0})
    params = {k: v for k, v in variables["params"].items() if not k.startswith("head")}
    np.testing.assert_allclose(
        jax.jit(pooled.apply)({"params": params}, images), (tokens[:, 0] + tokens[:, 1]) / 2, rtol=1e-5, atol=1e-5
    )


def test_its_weights_are_known_and_loaded_and_fit_another_image_size():
    model = create_model("deit_t_distilled", **OWN)
    variables = random_variables(model)
    state = flatten_jax.to_torch(variables, model)
    jax.tree.map(np.testing.assert_array_equal, flatten_jax.load_weights(state, model), variables)
    larger = create_model("deit_t_distilled", **{**OWN, "image_size": 32})
    position = flatten_jax.load_weights(state, larger)["params"]["pos_embed"]
    assert position.shape == (1, 2 + 64, 8)
    np.testing.assert_array_equal(position[:, :2], state["pos_embed"][:, :2])
    official = create_model("deit_t_distilled")
    shapes = {name: leaf for row in flatten_jax.weights.layout.layout(official) for name, leaf in _shaped(row)}
    assert guess_model(shapes) == ("deit_t_distilled", {})
    with pytest.raises(ValueError, match=r"dist_token says that they are of a distilled DeiT.*deit_t_distilled"):
        flatten_jax.load_weights(state, create_model("deit_t", **OWN))


def _shaped(row):
    return [(name, np.broadcast_to(np.float32(0), shape)) for name, shape in row.entries().items()]


def test_two_tokens_before_the_picture_are_for_attentions_that_take_some():
    for name, cls in ATTENTIONS.items():
        kind = dict(attn_type=f"softmax*1+{name}") if cls.takes_before else dict(attn_type=name, depth=1)
        try:
            model = create_model("deit_t_distilled", **{**OWN, **kind, "image_size": 64})
        except ValueError as error:
            assert not cls.takes_prefix or "prefix" not in str(error), (name, error)
            if not cls.takes_prefix:
                assert "takes no class token, pool the tokens (class_token=False); those that do" in str(error)
            continue
        assert cls.takes_prefix, name
        assert abstract_variables(model)["params"]["pos_embed"].shape == (1, 2 + 256, 8)


def test_without_a_class_token_there_is_no_second():
    for option in (dict(class_token=False), dict(fc_norm=True)):
        with pytest.raises(ValueError, match="distilled=True has a token beside the class token: not with class_token"):
            create_model("deit_t_distilled", **OWN, **option)


def test_a_model_with_tokens_of_its_own_has_no_second():
    with pytest.raises(ValueError, match="'distilled' has no effect on tnt_s"):
        create_model("tnt_s", distilled=True)
