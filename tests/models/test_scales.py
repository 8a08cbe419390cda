"""CrossViT, TNT, MSVMamba and STViT-R: tokens of two scales in one model."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

import flatten_jax
from flatten_jax import create_model
from flatten_jax.models import abstract_variables, dummy_images
from flatten_jax.models.crossvit import resized
from flatten_jax.models.stvit import SemanticWindows
from flatten_jax.weights.resample import bicubic

# One small model of each family, of pictures that are no square.
SMALL = {
    "crossvit": (
        "crossvit_ti",
        dict(widths=(8, 12), num_heads=(2, 2), depth=2, branch_depths=(1, 2), image_size=(48, 72)),
    ),
    "tnt": (
        "tnt_s",
        dict(embed_dim=12, num_heads=2, inner_dim=8, inner_heads=2, depth=2, image_size=(32, 48)),
    ),
    "msvmamba": (
        "msvmamba_n",
        dict(embed_dim=8, depths=(1, 1, 1, 1), num_heads=(2, 2, 2, 2), image_size=(50, 72)),
    ),
    "stvit": (
        "stvit_r_swin_t",
        dict(embed_dim=8, depths=(1, 1, 1, 1), num_heads=(2, 2, 2, 2), softmax_window_size=2, image_size=(64, 96)),
    ),
}


def small(family, **options):
    name, own = SMALL[family]
    return create_model(name, **{"num_classes": 10, **own, **options})


def images(model, batch=2):
    return jax.random.normal(jax.random.key(0), (batch, *model.image_size, 3))


def random_variables(model):
    rng = np.random.default_rng(0)

    def random(path, x):
        value = (0.2 * rng.standard_normal(x.shape)).astype(np.float32)
        if path[-1].key == "scale":
            return 1 + value
        return 1 + np.abs(value) if path[0].key == "batch_stats" and path[-1].key == "var" else value

    return jax.tree_util.tree_map_with_path(random, abstract_variables(model))


@pytest.mark.parametrize("family", SMALL)
def test_logits_features_and_maps_of_rectangles(family):
    model = small(family)
    others = [small(family, **o) for o in ({"num_classes": 0}, {"features_only": True}, {"dtype": "bfloat16"})]
    variables = random_variables(model)
    logits, pooled, maps, near = jax.jit(lambda *args: [m.apply(*args) for m in (model, *others)])(
        variables, images(model)
    )
    assert logits.shape == (2, 10)
    assert np.abs(logits[0] - logits[1]).max() > 1e-3 * np.abs(logits).max()
    np.testing.assert_allclose(near, logits, atol=0.1 * np.abs(logits).max())
    assert near.dtype == jnp.float32
    for x, info in zip(maps, others[1].feature_info, strict=True):
        sides = [side / info["reduction"] for side in model.image_size]
        assert x.shape[3] == info["num_chs"]
        assert all(abs(ours - side) < 1 for ours, side in zip(x.shape[1:3], sides, strict=True))
    heads = [variables["params"][name] for name in ("head", "head_0", "head_1") if name in variables["params"]]
    parts = np.split(pooled, np.cumsum([len(head["kernel"]) for head in heads])[:-1], axis=1)
    expected = [part @ head["kernel"] + head["bias"] for part, head in zip(parts, heads, strict=True)]
    np.testing.assert_allclose(np.mean(expected, axis=0), logits, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(("family", "options"), [("crossvit", {"depth": 1}), ("stvit", {})])
def test_rematerialisation_changes_no_gradient_in_training(family, options):
    plain, remat = (small(family, drop_path=0.5, remat=remat, **options) for remat in (False, True))
    variables = random_variables(plain)

    @jax.jit
    def gradients(variables, batch):
        def loss(params, model):
            rngs = {"dropout": jax.random.key(1, impl="rbg")}
            rest = {**variables, "params": params}
            return (model.apply(rest, batch, train=True, rngs=rngs, mutable=["batch_stats"])[0] ** 2).sum()

        return [jax.grad(loss)(variables["params"], model) for model in (plain, remat)]

    first, second = gradients(variables, images(plain))
    scale = max(float(np.abs(leaf).max()) for leaf in jax.tree.leaves(first))
    assert scale > 1e-3
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5 * scale), first, second)


@pytest.mark.parametrize("family", SMALL)
def test_weights_go_to_pytorch_and_back(family):
    model = small(family)
    variables = random_variables(model)
    there = flatten_jax.to_torch(variables, model)
    back = flatten_jax.from_torch(there, model)
    jax.tree.map(np.testing.assert_array_equal, back, variables)
    typical = {
        "crossvit": {"pos_embed.0", "cls_token.1", "blocks.1.fusion.0.attn.wq.weight", "head.1.bias"},
        "tnt": {"outer_tokens", "outer_pos", "blocks.1.inner_attn.qk.weight", "blocks.1.outer_attn.v.weight"},
        "msvmamba": {"patch_embed.2.weight", "layers.0.blocks.0.op.se.fc.0.weight", "classifier.head.weight"},
        "stvit": {
            "patch_embed.proj.2.bn.running_var",
            "layers.2.blocks.5.layer_scale_2",
            "layers.0.downsample.norm.bias",
        },
    }
    assert typical[family] <= set(there)


@pytest.mark.parametrize(
    ("family", "options"),
    [
        ("crossvit", dict(attn_type="agent,softmax", agent_num=(4, 9))),
        ("tnt", dict(attn_type="rala", num_heads=3)),  # rotary positions want heads of 4 channels
        ("tnt", dict(attn_type="focused,softmax", inner_attn_type="linear", class_token=False)),
        ("msvmamba", dict(attn_type="ms2d,rala,softmax,softmax")),
        ("stvit", dict(attn_type="focused,focused,linear,softmax")),
    ],
)
def test_attentions_are_exchanged(family, options):
    model = small(family, **options)
    logits = jax.eval_shape(model.apply, abstract_variables(model), images(model))
    assert logits.shape == (2, 10)


def test_loops_give_what_blocks_written_out_do():
    """Of states that are more than one array: TNT's."""
    plain, loop = (small("tnt", depth=3, scan=scan) for scan in (False, True))
    variables = random_variables(plain)
    logits = jax.jit(lambda *args: [m.apply(*args) for m in (plain, loop)])(variables, images(plain))
    np.testing.assert_allclose(*logits, rtol=1e-4, atol=1e-5)


def test_crossvit_has_the_rates_of_its_coarse_blocks():
    rates = create_model("crossvit_ti", drop_path=0.11).rates()
    np.testing.assert_allclose(rates[1] + rates[3] + rates[5], np.arange(12) / 100)
    np.testing.assert_allclose([rates[0], rates[2], rates[4]], [[0], [0.04], [0.08]])


def test_crossvit_resizes_as_pytorch_does():
    x = np.random.default_rng(0).standard_normal((1, 15, 30, 3)).astype(np.float32)
    ours = resized(jnp.asarray(x), (14, 28))
    np.testing.assert_allclose(ours[0], bicubic(x[0], (14, 28)), atol=1e-5)
    assert resized(ours, (14, 28)) is ours
    # Half-way between two pixels a = -0.75 gives -3/32, 19/32, 19/32, -3/32.
    between = resized(jnp.asarray([0.0, 0, 1, 0, 0, 0, 0, 0])[None, None, :, None], (1, 4))[0, 0, :, 0]
    np.testing.assert_allclose(between, [-3 / 32, 19 / 32, 0, 0], atol=1e-6)


def test_a_class_token_of_crossvit_is_all_that_sees_the_other_branch():
    """After the only group the patches of a branch are those of its own picture and blocks."""
    model = small("crossvit", depth=1)
    variables = random_variables(model)
    changed = jax.tree.map(np.copy, variables)
    changed["params"]["patch_embed_1"]["proj"]["bias"][0] += 5  # of one channel: norms take away that of all

    run = jax.jit(lambda variables, x: model.apply(variables, x, method="forward_features"))
    (fine, coarse), (fine_then, coarse_then) = (run(v, images(model)) for v in (variables, changed))
    np.testing.assert_allclose(fine_then[:, 1:], fine[:, 1:], atol=1e-5)
    assert np.abs(fine_then[:, 0] - fine[:, 0]).max() > 1e-3
    assert np.abs(coarse_then - coarse).max() > 1e-3


def test_a_word_of_tnt_sees_its_own_patch_alone():
    """With the attention of the patches silent, a patch changes its own token."""
    model = small("tnt", depth=1, class_token=False, features_only=True, out_indices=(0,))
    variables = random_variables(model)
    for leaf in ("kernel", "bias"):
        variables["params"]["blocks_0"]["outer_attn"]["proj"][leaf] *= 0
    x = np.array(images(model))
    y = x.copy()
    y[:, 16:, 32:] += 1  # the last patch of 2 x 3
    run = jax.jit(lambda x: model.apply(variables, x)[0])
    before, after = run(x), run(y)
    differs = np.abs(after - before).max(axis=(0, 3)) > 1e-5
    np.testing.assert_array_equal(differs, [[False] * 3, [False, False, True]])


def test_semantic_tokens_are_pooled_and_see_regions_as_the_original():
    windows = SemanticWindows.of((14, 14), 7)
    assert windows == ((14, 14), (7, 7), (10, 10))
    place = np.arange(196, dtype=np.float32).reshape(1, 196, 1)
    pooled = np.asarray(windows.pooled(place))[..., 0]
    # Rows and columns [0, 3), [2, 5), [4, 7) of each window: the largest is the last of each bin.
    last = np.add.outer(14 * np.array([2, 4, 6]), [2, 4, 6]).ravel()
    np.testing.assert_array_equal(pooled, [last, last + 7, last + 7 * 14, last + 7 * 15])
    regions = np.asarray(windows.regions(place))[..., 0]
    np.testing.assert_array_equal(regions[:, 0], [0, 4, 4 * 14, 4 * 15])
    np.testing.assert_array_equal(regions[:, -1], np.array([0, 4, 4 * 14, 4 * 15]) + 9 * 15)
    joined = np.asarray(windows.joined(pooled[..., None]))
    np.testing.assert_array_equal(joined.reshape(6, 6)[:3, 3:].ravel(), pooled[1])
    np.testing.assert_array_equal(windows.split(joined)[..., 0], pooled)


def test_initial_values():
    model = small("stvit")

    @jax.jit  # of these values alone
    def scales():
        params = model.init(jax.random.key(0, impl="rbg"), dummy_images(model))["params"]
        return [x for path, x in flatten_dict(params).items() if path[-1].startswith("layer_scale")]

    assert len(scales()) == 10
    assert all((x == np.float32(1e-5)).all() for x in scales())


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("stvit_r_swin_t", dict(image_size=384, softmax_window_size=7), "24 x 24 tokens is no whole number of windows"),
        ("msvmamba_n", dict(image_size=3), "smaller than a patch of 4"),
        ("crossvit_ti", dict(conv_stem=True, patch_sizes=(8, 16)), "patch_size=8 has no convolutional stem"),
        ("crossvit_ti", dict(attn_type="ms2d"), "takes no class token"),
        ("tnt_s", dict(image_size=100), "is not divisible by patch_size=16"),
    ],
)
def test_what_does_not_fit_is_refused_with_one_line(name, options, message):
    with pytest.raises(ValueError, match=message) as error:
        create_model(name, **options)
    assert "\n" not in str(error.value)
