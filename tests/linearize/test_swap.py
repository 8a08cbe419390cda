"""A teacher's model with another attention: which blocks, which weights, and what is said of them."""

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from flatten_jax import create_model
from flatten_jax.linearize.swap import COPIES, restored, student_of, swap
from flatten_jax.models import abstract_variables
from flatten_jax.weights.layout import attention_of_blocks
from flatten_jax.weights.new import _STREAM

DEIT = dict(embed_dim=8, num_heads=2, depth=4, patch_size=4, image_size=16, num_classes=3)
SWIN = dict(depths=(2, 2), num_heads=(2, 2), embed_dim=8, softmax_window_size=2, image_size=16, num_classes=3)
PVT = dict(depths=(1,) * 4, num_heads=(1,) * 4, embed_dims=(8,) * 4, mlp_ratios=(1,) * 4, image_size=32, num_classes=3)
CSWIN = dict(depths=(1,) * 4, num_heads=(2,) * 4, embed_dim=4, image_size=32, num_classes=3)


def random_variables(model, seed=0):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: np.float32(0.3 * rng.standard_normal(x.shape)), abstract_variables(model))


def logits(model, variables):
    images = jax.random.normal(jax.random.key(0), (2, *model.image_size, 3))
    return np.asarray(jax.jit(model.apply)(variables, images))


@pytest.mark.parametrize(("name", "options"), [("deit_t", DEIT), ("swin_t", SWIN), ("pvt_v2_b0", PVT)])
def test_softmax_to_softmax_gives_the_same_logits_bit_for_bit(name, options):
    teacher = create_model(name, **options)
    variables = random_variables(teacher)
    _, _, student = student_of(teacher, "softmax")
    assert student == teacher
    same, report = swap(variables, teacher, student)
    np.testing.assert_array_equal(logits(student, same), logits(teacher, variables))
    assert not report.made and not report.ignored and len(report.matched) == len(flatten_dict(variables))


@pytest.mark.parametrize(
    ("name", "options", "attention", "keep", "attn_type"),
    [
        ("deit_t", DEIT, "linear", (), "linear"),
        ("deit_t", DEIT, "linear", (1, 3), "linear/softmax"),
        ("deit_t", DEIT, "linear", (3,), "linear*3+softmax"),
        ("deit_t", DEIT, "linear*1+hedgehog", (0,), "softmax*1+hedgehog"),
        ("swin_t", SWIN, "linear", (2,), "linear,softmax*1+linear"),
        ("swin_t", SWIN, "rala,softmax", (), "rala,softmax"),
        ("deit_t", {**DEIT, "attn_type": "taylor"}, "linear", (0,), "taylor*1+linear"),
    ],
)
def test_kept_blocks_have_the_teachers_attention_in_an_ordinary_pattern(name, options, attention, keep, attn_type):
    teacher = create_model(name, **options)
    found, own, student = student_of(teacher, attention, keep)
    assert student.attn_type == attn_type
    assert create_model(found, **own) == student


def test_what_does_not_fit_is_said():
    teacher = create_model("deit_t", **DEIT)
    for keep in ((4,), (0, 7)):
        with pytest.raises(
            ValueError, match=rf"linearize\.keep={keep[-1]} is not a block of DeiT, which has 0 \.\.\. 3"
        ):
            student_of(teacher, "linear", keep)
    with pytest.raises(ValueError, match="attn_type='linaer' is not a known attention; did you mean 'linear'"):
        student_of(teacher, "linaer")
    with pytest.raises(ValueError, match=r"Focused takes no class token, pool the tokens \(class_token=False\)"):
        student_of(teacher, "focused")
    with pytest.raises(ValueError, match="ConvNeXt has no attention that could be exchanged"):
        student_of(create_model("convnext_t", depths=(1, 1, 1, 1), attn_type=""), "linear")
    with pytest.raises(ValueError) as error:
        student_of(teacher, "linear", (), {"name": "swin_t"})
    for line in ("family: DeiT of the teacher, Swin of model.name='swin_t'", "widths: [8] of the teacher, [96, 192"):
        assert line in str(error.value)
    with pytest.raises(ValueError, match=r"widths: \[8\] of the teacher, \[384\] of model\.name='deit_s'"):
        student_of(teacher, "linear", (), {"name": "deit_s"})
    assert student_of(teacher, "linear", (), {"name": "deit_s", "embed_dim": 8, "depth": 4, "patch_size": 4})


def taken(variables, of_teacher):
    """Names of the parameters that are the teacher's; those that all models start with do not tell."""
    theirs = flatten_dict(of_teacher["params"])
    return {
        "/".join(path) for path, x in flatten_dict(variables["params"]).items() if np.array_equal(x, theirs.get(path))
    }


def test_what_is_copied_is_what_was_asked_for():
    teacher = create_model("deit_t", **DEIT)
    variables = random_variables(teacher)
    _, _, student = student_of(teacher, "hedgehog", (2,))
    names = {"/".join(path) for path in flatten_dict(abstract_variables(student)["params"])}
    maps = {name for name in names if name.endswith("_map")}
    of_mlp = {name for name in names if "/mlp/" in name or "/norm2/" in name}
    of_attention = {name for name in names if "/attn/" in name or "/norm1/" in name} - maps
    expected = {"all": names - maps, "mlp": of_mlp, "attention": of_attention, "none": set()}
    assert len(maps) == 6 and expected.keys() == COPIES.keys()
    for copy, these in expected.items():
        swapped, report = swap(variables, teacher, student, copy)
        assert taken(swapped, variables) == these == set(report.matched), copy
        assert set(report.made) == names - these
        assert f"(copy={copy})" in str(report)


def test_with_the_teachers_seed_nothing_is_what_the_teacher_began_with():
    teacher = create_model("deit_t", **DEIT)
    _, _, student = student_of(teacher, "linear")
    began = jax.jit(teacher.init)(jax.random.key(3), np.zeros((1, 16, 16, 3), np.float32))
    new, _ = swap(began, teacher, student, "none", seed=3)
    again, _ = swap(began, teacher, student, "none", seed=3)
    jax.tree.map(np.testing.assert_array_equal, new, again)
    drawn = [path for path, x in flatten_dict(began["params"]).items() if np.ptp(x) > 0]
    assert len(drawn) > 15 and taken(new, began).isdisjoint("/".join(path) for path in drawn)
    own = jax.jit(student.init)(jax.random.fold_in(jax.random.key(3), _STREAM), np.zeros((1, 16, 16, 3), np.float32))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), new, own)


def test_what_the_student_has_no_place_for_is_left_out_and_said():
    teacher = create_model("swin_t", **SWIN)
    _, _, student = student_of(teacher, "linear", (0,))
    _, report = swap(random_variables(teacher), teacher, student)
    assert len(report.ignored) == 3 and all("relative_position_bias_table" in name for name in report.ignored)


def test_a_class_token_is_left_out_with_its_position():
    teacher = create_model("deit_t", **DEIT)
    variables = random_variables(teacher)
    _, own, student = student_of(teacher, "focused", (), {"class_token": False})
    assert own["class_token"] is False
    swapped, report = swap(variables, teacher, student)
    np.testing.assert_array_equal(swapped["params"]["pos_embed"], variables["params"]["pos_embed"][:, 1:])
    assert report.ignored == ("cls_token",) and "pos_embed" in report.matched


def test_a_block_that_is_restored_is_the_teachers():
    teacher = create_model("swin_t", **SWIN)
    variables = random_variables(teacher)
    _, _, before = student_of(teacher, "linear")
    trained = random_variables(before, seed=1)
    _, _, after = student_of(teacher, "linear", (1,))
    block = list(attention_of_blocks(after))[1]
    assert block == ("layers_0", "blocks_1")
    params = restored(trained, after, variables, {block})["params"]
    of_block, theirs = params["layers_0"]["blocks_1"], variables["params"]["layers_0"]["blocks_1"]
    for name in ("attn", "norm1"):
        jax.tree.map(np.testing.assert_array_equal, of_block[name], theirs[name])
    for name in ("mlp", "norm2"):
        jax.tree.map(np.testing.assert_array_equal, of_block[name], trained["params"]["layers_0"]["blocks_1"][name])
    jax.tree.map(np.testing.assert_array_equal, params["layers_1"], trained["params"]["layers_1"])
