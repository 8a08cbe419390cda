"""What ConvNeXt, HorNet, CvT, SReT and SVT have of their own: norms, heads, rates, initial values, shared blocks."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

import flatten_jax
from flatten_jax import create_model
from flatten_jax.models import abstract_variables, dummy_images, parameters_left_out
from flatten_jax.models.blocks import Block
from flatten_jax.models.convnext import ConvNeXtBlock
from flatten_jax.models.hornet import HorNetBlock
from flatten_jax.models.sret import RecursiveBlock
from flatten_jax.weights.layout import entries, layout
from flatten_jax.weights.load import load_with_report

# One small model of each family: (name, options).
SMALL = {
    "convnext": ("convnext_t", dict(depths=(1, 1, 2, 1), embed_dims=(8, 8, 16, 16))),
    "convnext_isotropic": ("convnext_isotropic_s", dict(depth=4, embed_dim=16)),
    "hornet": ("hornet_t_gf", dict(depths=(1, 1, 2, 1), embed_dims=(8, 8, 16, 32), num_heads=(1, 1, 2, 2))),
    "cvt": ("cvt_13", dict(depths=(1, 1, 2), embed_dims=(8, 8, 16), num_heads=(1, 1, 2))),
    "sret": ("sret_t", dict(depths=(1, 2, 1), embed_dims=(8, 16, 32), num_heads=(1, 2, 2))),
    "svt": (
        "svt_h_s",
        dict(depths=(1, 1, 2, 1), embed_dims=(8, 8, 16, 16), num_heads=(1, 1, 2, 2), mlp_ratios=(1,) * 4, stem_width=8),
    ),
}
HEADS = {"svt": {"head", "aux_head"}}


def small(family, **options):
    name, own = SMALL[family]
    return create_model(name, **{"image_size": 64, "num_classes": 10, **own, **options})


def images(model, batch=2):
    return jax.random.normal(jax.random.key(0), (batch, *model.image_size, 3))


def random_variables(model):
    """All parameters random, those that multiply around 1: zeros and ones, as initialised, would hide much."""
    rng = np.random.default_rng(0)

    def value(path, leaf):
        names = [key.key for key in path]
        multiplies = names[-1] == "scale" or names[-2].startswith("coefficient")
        noise = (0.2 * rng.standard_normal(leaf.shape)).astype(np.float32)
        return 1 + (np.abs(noise) if names[-1] == "var" else noise) if multiplies or names[-1] == "var" else noise

    return jax.tree.map_with_path(value, abstract_variables(model))


def normalised(x):
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)


@pytest.mark.parametrize("family", SMALL)
def test_logits_are_the_head_of_the_pooled_features_of_a_rectangle(family):
    model, headless = (small(family, image_size=(64, 96), num_classes=n) for n in (10, 0))
    half = model.clone(dtype=jnp.dtype("bfloat16"))
    variables, batch = random_variables(model), images(model)

    def captured(_, method):
        return method in ("final_norm", "pool")

    @jax.jit
    def both(variables, batch):
        logits, state = model.apply(variables, batch, capture_intermediates=captured, mutable=["intermediates"])
        return logits, state["intermediates"], half.apply(variables, batch)

    logits, within, rounded = jax.tree.map(np.float32, both(variables, batch))
    (features,), (pooled,) = within["final_norm"], within["pool"]
    assert np.isfinite(rounded).all()
    assert np.abs(logits[0] - logits[1]).max() > 1e-3 * np.abs(logits).max()
    params = variables["params"]
    if family in ("cvt", "svt"):
        expected = features[:, 0]
    else:
        expected = normalised(features.mean(axis=(1, 2))) * params["norm"]["scale"] + params["norm"]["bias"]
    pooled = pooled[:, 0] if family == "svt" else pooled
    np.testing.assert_allclose(pooled, expected, rtol=1e-3, atol=1e-4)
    expected = pooled @ params["head"]["kernel"] + params["head"]["bias"]
    if family == "svt":
        expected += 0.5 * (features[:, 1:] @ params["aux_head"]["kernel"] + params["aux_head"]["bias"]).max(axis=1)
    np.testing.assert_allclose(logits, expected, rtol=1e-3, atol=1e-4)
    left_out = parameters_left_out(headless)
    assert left_out == {(head, leaf) for head in HEADS.get(family, {"head"}) for leaf in ("kernel", "bias")}
    assert jax.eval_shape(headless.apply, variables, batch).shape == pooled.shape


@pytest.mark.parametrize("family", SMALL)
def test_maps_have_the_strides_and_channels_they_say(family):
    model = small(family, image_size=(64, 96), features_only=True)
    maps = jax.eval_shape(model.apply, abstract_variables(model), images(model))
    assert len(maps) == len(model.feature_info) == (3 if family in ("cvt", "sret") else 4)
    for x, info in zip(maps, model.feature_info, strict=True):
        assert x.shape == (2, 64 // info["reduction"], 96 // info["reduction"], info["num_chs"])


@pytest.mark.parametrize("family", ["convnext", "hornet"])
def test_maps_have_the_norms_of_the_detection_code(family):
    with_norms, without = (
        set(abstract_variables(small(family, features_only=True, feature_norm=f))["params"]) for f in (True, False)
    )
    assert with_norms - without == {f"norm{i}" for i in range(4)}


@pytest.mark.parametrize(
    ("family", "size", "sides"),
    [
        ("convnext", (75, 101), [(18, 25), (9, 12), (4, 6), (2, 3)]),  # what is left is cut off
        ("cvt", (75, 101), [(19, 25), (10, 13), (5, 7)]),
        ("sret", (65, 127), None),
        ("svt", (75, 101), [(19, 26), (10, 13), (5, 7), (3, 4)]),
    ],
)
def test_any_size_that_the_original_takes(family, size, sides):
    options = dict(attn_type="softmax") if family == "sret" else {}
    model = small(family, image_size=size, features_only=True, **options)
    maps = jax.eval_shape(model.apply, abstract_variables(model), images(model))
    assert [x.shape[1:3] for x in maps] == (sides or [(9, 16), (5, 8), (3, 4)])


RATES = {
    "convnext": [0.0, 0.1, 0.2, 0.3, 0.4],
    "convnext_isotropic": [0.0, 0.4 / 3, 0.8 / 3, 0.4],
    "hornet": [0.0, 0.1, 0.2, 0.3, 0.4],
    "cvt": [0.0, 0.0, 0.0, 0.4],  # within the last stage
    "sret": [0.0, 0.0, 0.0, 0.0, 0.05, 0.05, 0.0, 0.0],  # from 0 in every stage, an eighth for each block
    "svt": [0.0, 0.1, 0.2, 0.3, 0.4],
}


@pytest.mark.parametrize("family", SMALL)
def test_rates_of_drop_path(family):
    model, rates = small(family, drop_path=0.4), []

    def record(call, args, kwargs, context):
        if isinstance(context.module, Block | ConvNeXtBlock | HorNetBlock | RecursiveBlock):
            rates.append(args[2])  # after x and site
        return call(*args, **kwargs)

    with nn.intercept_methods(record):
        jax.eval_shape(lambda: model.init(jax.random.key(0), dummy_images(model)))
    np.testing.assert_allclose(rates, RATES[family])


ONE_STAGE = {
    "convnext": dict(depths=(2,), embed_dims=(8,), scan=True),
    "hornet": dict(depths=(2,), embed_dims=(8,), num_heads=(1,), order=2, global_filter=True, gf_size=3, scan=True),
    "sret": dict(depths=(1,), embed_dims=(8,), num_heads=(2,), num_groups=4, groups_again=(2,)),
}


@pytest.mark.parametrize("family", ONE_STAGE)
def test_rematerialisation_and_loops_change_no_gradient(family):
    remat = small(family, image_size=32, remat=True, **ONE_STAGE[family])
    plain = remat.clone(remat=False, scan=False)

    def loss(params, variables, batch, model):
        return (model.apply({**variables, "params": params}, batch) ** 2).sum()

    @jax.jit
    def both(variables, batch):
        return [jax.grad(loss)(variables["params"], variables, batch, model) for model in (plain, remat)]

    ours, other = both(random_variables(plain), images(plain))
    scale = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(ours))
    assert scale > 1e-3
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5 * scale), ours, other)


def initial(family, **options):
    model = small(family, image_size=32, **options)
    params = jax.jit(model.init)(jax.random.key(0, impl="rbg"), dummy_images(model))["params"]
    return {"/".join(path): np.asarray(leaf) for path, leaf in flatten_dict(params).items()}


def test_initial_values_of_hornet_are_normal():
    others = {"bias": 0, "scale": 1, "gamma1": np.float32(1e-6), "gamma2": np.float32(1e-6)}
    for path, value in initial("hornet", embed_dims=(64, 64, 64, 64)).items():
        leaf = path.split("/")[-1]
        if leaf in ("kernel", "complex_weight"):
            assert value.std() == pytest.approx(0.02, rel=4 * value.size**-0.5), path
        else:
            assert (value == others[leaf]).all(), path


def test_initial_values_of_sret_are_those_of_pytorch():
    for path, value in initial("sret", embed_dims=(64, 64, 64), num_heads=(1, 1, 1)).items():
        *_, module, leaf = ("", *path.split("/"))
        if leaf == "kernel":
            bound = math.prod(value.shape[:-1]) ** -0.5
            assert 0.9 * bound < np.abs(value).max() <= bound, path
        elif leaf == "bias" and not module.startswith(("norm", "bn", "coefficient")):
            assert value.std() > 0.01, path


def test_only_the_head_of_cvt_has_a_bias_at_first():
    params = initial("cvt")
    assert 0.1 < np.abs(params["head/bias"]).max() <= 16**-0.5
    assert not params["stage2/blocks_0/mlp/fc1/bias"].any()


@pytest.mark.parametrize(
    ("family", "attn_type"),
    [
        ("hornet", "rala,focused,softmax,gnconv"),
        ("cvt", "cvt/linear,softmax,efficient"),
        ("sret", "sret,focused,sret/softmax"),
        ("svt", "focused,svt,linear,softmax"),
    ],
)
def test_attentions_are_exchanged(family, attn_type):
    model = small(family, attn_type=attn_type)
    assert {name for names in model.attentions() for name in names} <= {
        name for stage in attn_type.split(",") for name in stage.split("/")
    }
    weights = entries(layout(model))
    assert any("qkv" in name or "kv" in name for name in weights)


def test_second_applications_have_groups_of_their_own_and_the_same_weights():
    sliced, again, whole = (
        small("sret", num_groups=groups, groups_again=groups_again)
        for groups, groups_again in ((2, (1, 1, 1)), (1, (2, 1, 1)), (1, (1, 1, 1)))
    )
    variables = random_variables(sliced)
    logits = jax.jit(lambda *args: [m.apply(*args) for m in (sliced, again, whole)])(variables, images(sliced))
    for i, j in ((0, 1), (0, 2), (1, 2)):
        assert np.abs(logits[i] - logits[j]).max() > 1e-4 * np.abs(logits[i]).max()


def test_shared_blocks_go_out_under_both_names_and_in_by_the_first():
    model = small("sret")
    variables = random_variables(model)
    state_dict = flatten_jax.to_torch(variables, model)
    twins = {name for name in state_dict if ".blocks.2." in name or ".blocks.6." in name}
    assert len(twins) == 16 * (3 + 1)
    wanted = entries(layout(model))
    for name in twins:
        first = name.replace(".blocks.2.", ".blocks.0.").replace(".blocks.6.", ".blocks.4.")
        np.testing.assert_array_equal(state_dict[name], state_dict[first])
        assert name not in wanted
    for given in (state_dict, {name: array for name, array in state_dict.items() if name not in twins}):
        back = flatten_jax.from_torch(given, model)
        jax.tree.map(np.testing.assert_array_equal, back, variables)


@pytest.mark.parametrize(
    ("family", "options", "message"),
    [
        ("convnext", {"attn_type": "linear"}, "ConvNeXt has no attention to exchange: leave out attn_type='linear'"),
        ("convnext", {"image_size": 24}, r"image_size=\(24, 24\) leaves no grid: use 32 pixels or more"),
        ("convnext_isotropic", {"image_size": 100}, "is not divisible by patch_size=16"),
        ("hornet", {"embed_dims": (8, 8, 12, 32)}, "order=4 must be at least 1"),
        ("cvt", {"attn_type": "cvt,cvt,focused"}, r"no class token.*class_token=False"),
        ("sret", {"image_size": 72}, "num_groups=8 must divide the 81 tokens"),
        ("sret", {"scan": True}, "'scan' has no effect"),
        ("sret", {"attn_type": "softmax", "groups_again": (4, 1, 1)}, "'groups_again' has no effect"),
        ("svt", {"features_only": True, "feature_norm": True}, "'feature_norm' has no effect"),
        ("svt", {"embed_dims": (10, 8, 16, 16)}, "channels=10 is not divisible by num_blocks=4"),
    ],
)
def test_a_wrong_option_is_refused_with_one_line(family, options, message):
    with pytest.raises(ValueError, match=message) as error:
        small(family, **options)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("family", "options"),
    [
        ("hornet", {}),  # its filters are resized in every forward pass
        ("sret", {"num_groups": (4, 1, 1)}),  # its positions once, as a map
    ],
)
def test_weights_go_to_another_image_size(family, options):
    model, larger = (small(family, image_size=size, **options) for size in (64, 128))
    variables = random_variables(model)
    found = load_with_report(variables, larger, saved=model)[0]
    positions = {("params", "pos_embed")} if family == "sret" else set()
    for path, array in flatten_dict(found).items():
        if path in positions:
            assert array.shape == (1, 8, 16, 16)
        else:
            np.testing.assert_array_equal(array, flatten_dict(variables)[path])
    with pytest.raises(ValueError, match="belongs to one grid"):
        other = small("svt", image_size=128)
        load_with_report(random_variables(small("svt")), other, saved=small("svt"))
