"""What all backbones have in common: sizes, features, initial values, drop-path, remat, half precision."""

import collections
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from flatten_jax import create_model
from flatten_jax.models import abstract_variables, dummy_images, parameters_left_out
from flatten_jax.models.blocks import Block
from flatten_jax.models.flops import products

# One small model of each family: (name, options).
SMALL = {
    "deit": ("flatten_deit_t", dict(depth=4, embed_dim=24)),
    "deit_softmax": ("deit_t", dict(depth=4, embed_dim=24)),
    "pvt": ("flatten_pvt_t", dict(depths=(1, 1, 2, 1), embed_dims=(8, 16, 20, 16), attn_type="LLSS")),
    "pvt_v2": ("flatten_pvt_v2_b0", dict(depths=(1, 1, 2, 1), embed_dims=(8, 16, 20, 16), attn_type="LLSS")),
    "swin": ("flatten_swin_t", dict(depths=(1, 1, 2, 1), embed_dim=12)),
    "cswin": ("flatten_cswin_t", dict(depths=(1, 1, 2, 1), embed_dim=16)),
    "flowformer": ("flowformer", dict(depths=(1, 1, 1, 1), embed_dims=(8, 16, 16, 16), num_heads=(2, 2, 2, 2))),
}
# Families whose heads, BatchNorms or float32 islands some of the tests do not know; they have tests of their own too.
OTHERS = {
    "soft": ("soft_t", dict(depths=(1,) * 4, embed_dims=(8,) * 4, num_heads=(2,) * 4, position_size=(64, 64))),
    "care": ("care_s0", dict(depths=(1,) * 4, embed_dims=(8, 8, 16, 16), num_heads=(2,) * 4, att_head_dim=4)),
    "efficientvit": ("efficientvit_b0", dict(depths=(1,) * 4, embed_dims=(8,) * 5, head_dim=4, head_widths=(16, 8))),
    "ravlt": ("ravlt_t", dict(depths=(1,) * 4, embed_dims=(8, 8, 16, 16), num_heads=(2, 2, 2, 1), projection=16)),
    "mila": ("mila_t", dict(depths=(1,) * 4, embed_dim=8, num_heads=(2,) * 4)),
    "l2vit": ("l2vit_t", dict(depths=(1, 2, 1, 1), embed_dims=(8,) * 4, num_heads=(2,) * 4)),
}
KEY = jax.random.key(0, impl="rbg")  # threefry takes XLA seconds to compile for every initialiser
PYRAMIDS = ["pvt", "pvt_v2", "swin", "cswin"]


def small(family, **options):
    name, own = (SMALL | OTHERS)[family]
    return create_model(name, **{"image_size": 64, "num_classes": 10, **own, **options})


def images(model, batch=2):
    return jax.random.normal(jax.random.key(0), (batch, *model.image_size, 3))


def random_variables(model, gain=None):
    """All parameters random: zeros and ones, as initialised, would hide much.

    Args:
        gain: of each product, so that activations keep their size. Default: 2 where there are running statistics, which
            do not bring them back to it, else whatever it is.
    """
    rng, variables = np.random.default_rng(0), abstract_variables(model)
    gain = gain or (2 if "batch_stats" in variables else None)

    def random(path, x):
        value = (0.2 * rng.standard_normal(x.shape)).astype(np.float32)
        if gain and path[-1].key in ("var", "scale"):
            return 1 + np.abs(value)
        if gain and path[-1].key == "kernel":
            return value * np.float32(5 * gain / np.sqrt(np.prod(x.shape[:-1])))
        return value

    return jax.tree_util.tree_map_with_path(random, variables)


@pytest.mark.parametrize("family", OTHERS)
def test_rectangles_run(family):
    model = small(family, image_size=(64, 96))
    logits = jax.jit(model.apply)(random_variables(model), images(model))
    assert logits.shape == (2, 10)
    assert np.isfinite(logits).all()
    assert np.abs(logits[0] - logits[1]).max() > 1e-3 * np.abs(logits).max()


@pytest.mark.parametrize("family", ["pvt_v2", "swin", "cswin", "ravlt", "mila", "l2vit"])
def test_families_that_pad_take_any_size(family):
    model = small(family, image_size=(75, 101), features_only=True)
    maps = jax.eval_shape(model.apply, abstract_variables(model), images(model))
    sides = [(19, 26) if family != "cswin" else (19, 25), (10, 13), (5, 7), (3, 4)]
    assert [x.shape[1:3] for x in maps] == sides  # rounded up; CSwin's first convolution pads one pixel less


def test_images_of_another_size_are_refused():
    model = small("swin")
    with pytest.raises(ValueError, match=r"images of \(96, 64\) were given to a model of image_size=\(64, 64\)"):
        jax.eval_shape(model.apply, abstract_variables(model), jnp.zeros((1, 96, 64, 3)))


@pytest.mark.parametrize("family", SMALL)
def test_logits_are_the_head_of_the_pooled_features_of_a_rectangle(family):
    model, headless = (small(family, image_size=(64, 96), num_classes=n) for n in (10, 0))
    variables, batch = random_variables(model), images(model)

    @jax.jit
    def all_of_them(variables, batch):
        features = model.apply(variables, batch, method="forward_features")
        return headless.apply(variables, batch), features, model.apply(variables, batch)

    pooled, features, logits = all_of_them(variables, batch)
    assert logits.shape == (2, 10)
    assert np.abs(logits[0] - logits[1]).max() > 1e-3 * np.abs(logits).max()
    head = variables["params"]["head"]
    np.testing.assert_allclose(logits, pooled @ head["kernel"] + head["bias"], rtol=1e-3, atol=1e-4)
    if family.startswith("deit"):
        assert features.shape == (2, 24 + model.class_token, 24)
        expected = features[:, 0] if model.class_token else features.mean(axis=1)
    else:
        assert features.shape[:3] == (2, 2, 3)
        expected = features.mean(axis=(1, 2))
    np.testing.assert_allclose(pooled, expected, rtol=1e-4, atol=1e-5)
    assert parameters_left_out(headless) == {("head", "kernel"), ("head", "bias")}


@pytest.mark.parametrize("family", [*PYRAMIDS, "flowformer", "soft", "ravlt", "mila", "l2vit"])
def test_maps_have_the_strides_and_channels_they_say(family):
    model = small(family, features_only=True)
    fewer = small(family, features_only=True, out_indices=(-1, 1))
    maps, chosen = jax.jit(lambda *args: (model.apply(*args), fewer.apply(*args)))(
        random_variables(model), images(model)
    )
    assert [info["reduction"] for info in model.feature_info] == [4, 8, 16, 32]
    for x, info in zip(maps, model.feature_info, strict=True):
        assert x.shape == (2, 64 // info["reduction"], 64 // info["reduction"], info["num_chs"])
    assert [info["index"] for info in fewer.feature_info] == [3, 1]
    np.testing.assert_array_equal(chosen[0], maps[3])
    np.testing.assert_array_equal(chosen[1], maps[1])


@pytest.mark.parametrize("family", ["deit", "deit_softmax"])
def test_maps_of_deit_are_those_of_blocks(family):
    model = small(family, image_size=(32, 64), features_only=True, out_indices=(1, -1))
    maps = jax.jit(model.apply)(random_variables(model), images(model))
    assert [x.shape for x in maps] == [(2, 2, 4, 24)] * 2
    assert [info["module"] for info in model.feature_info] == ["blocks.1", "blocks.3"]
    assert [i["index"] for i in create_model("deit_t", features_only=True).feature_info] == [2, 5, 8, 11]


@pytest.mark.parametrize("family", ["pvt", "swin", "cswin", "mila", "l2vit"])
def test_a_norm_for_each_map(family):
    plain, normed = (small(family, features_only=True, out_indices=(1, 3), feature_norm=f) for f in (False, True))
    variables = random_variables(normed)
    norms = {name: leaves for name, leaves in variables["params"].items() if name.startswith("norm")}
    assert set(norms) == {"norm1", "norm3"}
    both = jax.jit(lambda *args: (plain.apply(*args), normed.apply(*args)))(variables, images(normed))
    for raw, x, norm in zip(*both, (norms["norm1"], norms["norm3"]), strict=True):
        raw = np.asarray(raw)
        expected = (raw - raw.mean(-1, keepdims=True)) / np.sqrt(raw.var(-1, keepdims=True) + normed.epsilon)
        np.testing.assert_allclose(x, expected * norm["scale"] + norm["bias"], rtol=1e-3, atol=1e-4)


def test_a_shorter_backbone_says_what_it_leaves_out():
    model = small("swin", features_only=True, out_indices=(0, 1))
    top = {path[0] for path in parameters_left_out(model)}
    assert top == {"layers_1", "layers_2", "layers_3", "norm", "head"}
    assert {path[1] for path in parameters_left_out(model) if path[0] == "layers_1"} == {"downsample"}
    assert parameters_left_out(small("swin")) == set()


@functools.cache
def initial(family):
    """Initial parameters, wide enough for statistics: {"path/leaf": array}."""
    wide = {
        "pvt_v2": dict(embed_dims=(64, 64, 64, 64), num_heads=(1, 1, 1, 1), la_sr_ratios="2211", attn_type="LLSS"),
        "pvt": dict(embed_dims=(64, 64, 64, 64), num_heads=(1, 1, 1, 1), la_sr_ratios="2211", attn_type="LLSS"),
        "swin": dict(embed_dim=64, num_heads=(1, 1, 2, 2)),
        "cswin": dict(embed_dim=64, num_heads=(2, 2, 2, 2)),
    }
    model = small(family, depths=(1, 1, 1, 1), **wide[family])
    params = jax.jit(model.init)(KEY, dummy_images(model))["params"]
    return {"/".join(path): np.asarray(leaf) for path, leaf in flatten_dict(params).items()}


@pytest.mark.parametrize("family", PYRAMIDS)
def test_initial_values_are_the_release_ones(family):
    for path, value in initial(family).items():
        module, leaf = ("", *path.split("/"))[-2:]
        sampling = 4 * value.size**-0.5  # more than four standard errors of a standard deviation
        if leaf == "positional_encoding" or (leaf == "scale" and value.ndim == 3):
            assert not value.any(), path
        elif leaf == "scale":
            assert (value == 1).all(), path
        elif leaf.startswith(("pos_embed", "relative_position_bias_table")) or (leaf == "kernel" and value.ndim == 2):
            assert value.std() == pytest.approx(0.02, rel=sampling), path
            assert value.size < 1000 or np.abs(value).max() > 0.05, path  # not cut at two standard deviations
        elif leaf == "kernel":
            height, width, features_in, features_out = value.shape
            if family == "pvt_v2":
                fan_out = height * width * (1 if features_in == 1 else features_out)
                assert value.std() == pytest.approx((2 / fan_out) ** 0.5, rel=sampling), path
            else:
                bound = (height * width * features_in) ** -0.5
                assert 0.9 * bound < np.abs(value).max() <= bound, path
                assert value.std() == pytest.approx(bound / 3**0.5, rel=sampling), path
        elif family == "pvt_v2" or module not in ("proj", "conv", "dwc", "get_v", "sr", "stage1_conv_embed_0"):
            assert not value.any(), path  # all biases, but those of PyTorch's convolutions


def test_a_bias_of_a_convolution_is_that_of_pytorch():
    params = initial("cswin")
    for path, fan_in in {"stage1_conv_embed_0": 147, "merge1/conv": 9 * 64, "stage1_0/attns_0/get_v": 9}.items():
        bias = params[f"{path}/bias"]
        assert 0.8 * fan_in**-0.5 < np.abs(bias).max() <= fan_in**-0.5, path
    assert not params["stage1_0/proj/bias"].any()


@pytest.mark.parametrize("family", SMALL)
def test_drop_path_drops_in_training_only_and_more_in_later_blocks(family):
    model = small(family, drop_path=0.5)
    rates = {}

    def record(call, args, kwargs, context):
        if isinstance(context.module, Block):
            rates["/".join(context.module.path)] = args[2]  # after x and site
        return call(*args, **kwargs)

    with nn.intercept_methods(record):
        jax.eval_shape(lambda: model.init(jax.random.key(0), dummy_images(model)))
    depth = sum(map(len, model.attentions()))
    np.testing.assert_allclose(list(rates.values()), [0.5 * i / (depth - 1) for i in range(depth)])

    variables, batch = random_variables(model), images(model)

    @jax.jit
    def train(key):
        return model.apply(variables, batch, train=True, rngs={"dropout": key})

    first, second, again = (train(jax.random.key(seed)) for seed in (1, 2, 1))
    assert np.abs(first - second).max() > 1e-3
    np.testing.assert_array_equal(first, again)
    programs = [jax.jit(m.apply).lower(variables, batch).as_text() for m in (model, small(family))]
    assert programs[0] == programs[1]


@pytest.mark.parametrize(  # the stages of all are run by one function
    ("family", "policy", "options"), [("deit", "products", {"depth": 2}), ("swin", "nothing", {"depths": (1, 1, 2, 1)})]
)
def test_rematerialisation_changes_no_gradient(family, policy, options):
    plain = small(family, image_size=32, **options)
    variables, batch = random_variables(plain), images(plain)

    @jax.jit
    def gradients(variables):
        def loss(variables, model):
            return (model.apply(variables, batch) ** 2).sum()

        return [jax.grad(loss)(variables, m) for m in (plain, plain.clone(remat=True, remat_policy=policy))]

    first, other = gradients(variables)
    scale = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(first))
    assert scale > 1e-3
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5 * scale), first, other)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["ravlt", "efficientvit"])
def test_a_loop_and_rematerialisation_change_no_step_of_training(family):
    """Logits and running statistics; in EfficientViT the convolutions are rematerialised too."""
    plain, other = (small(family, depths=(2,) * 4, **options) for options in ({}, dict(scan=True, remat=True)))
    variables, batch = random_variables(plain), images(plain)

    def step(model):
        rngs = {"dropout": jax.random.key(0)}
        return lambda variables: model.apply(variables, batch, train=True, rngs=rngs, mutable=["batch_stats"])

    both = jax.jit(lambda variables: [step(model)(variables) for model in (plain, other)])(variables)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4), *both)
    assert jax.tree.structure(both[0][1]["batch_stats"]) == jax.tree.structure(variables["batch_stats"])
    dropping = other.clone(drop_path=0.5)
    jax.eval_shape(
        jax.grad(lambda params: step(dropping)({**variables, "params": params})[0].sum()), variables["params"]
    )


def test_remat_computes_again_what_its_policy_does_not_keep():
    counts = []
    for options in ({}, {"remat": True, "remat_policy": "products"}, {"remat": True}):
        model = small("deit", **options)

        def loss(variables, batch, model=model):
            return model.apply(variables, batch).sum()

        gradient = jax.make_jaxpr(jax.grad(loss))(abstract_variables(model), images(model))
        counts.append(sum(count for _, count in products(gradient.jaxpr)))
    kept, but_products, but_nothing = counts
    assert kept < but_products < but_nothing


def test_an_unknown_remat_policy_is_refused():
    with pytest.raises(ValueError, match="remat_policy='dots' must be one of nothing, products"):
        small("deit", remat=True, remat_policy="dots")


@pytest.mark.parametrize("family", ["deit", "pvt_v2", "swin"])
def test_bfloat16_is_near_and_gives_float32_logits(family):
    model, half = small(family), small(family, dtype="bfloat16")
    variables, batch = random_variables(model, gain=0.5), images(model)
    exact, near = jax.jit(lambda *args: [m.apply(*args) for m in (model, half)])(variables, batch)
    assert near.dtype == jnp.float32
    np.testing.assert_allclose(near, exact, atol=0.03 * np.abs(exact).max())
    maps = jax.eval_shape(small(family, dtype="bfloat16", features_only=True).apply, variables, batch)
    assert {x.dtype for x in maps} == {jnp.dtype("bfloat16")}  # nothing between went back to float32


@pytest.mark.parametrize("family", [family for family in SMALL if family != "flowformer"])  # its flows are in float32
def test_products_are_in_bfloat16_forward_and_backward(family):
    """All but the normaliser of linear attention and, in JAX's softmax attention, the gradient of the scores."""
    model = small(family, dtype="bfloat16")

    def loss(variables, batch):
        return model.apply(variables, batch).sum()

    gradient = jax.make_jaxpr(jax.grad(loss))(abstract_variables(model), images(model))
    counts = collections.Counter()
    for product, count in products(gradient.jaxpr):
        counts[max(x.aval.dtype.itemsize for x in product.invars)] += count
    softmax = any("softmax" in names for names in model.attentions())
    assert counts[4] < (0.03 if softmax else 0.005) * counts[2]
