"""Names, parameter counts, multiply-adds and options of every listed model."""

import math

import jax
import pytest

from flatten_jax import create_model, list_models, model_options
from flatten_jax.models import PUBLISHED, abstract_variables, multiply_adds
from flatten_jax.models.registry import ALIASES

# Parameters and 1e9 multiply-adds of the spec (the paper's table, the release's classes); None: no such figure. Other
# softmax counts are those of the release's classes with attn_type="SSSS", and of timm's DeiT.
SIZES = {
    "flatten_deit_t": (6_190_888, 1.144),
    "flatten_deit_s": (22_977_640, None),
    "flatten_deit_b": (88_401_640, None),
    "flatten_pvt_t": (12_150_504, 2.048),
    "flatten_pvt_s": (21_670_248, 4.047),
    "flatten_pvt_m": (37_242_216, 7.061),
    "flatten_pvt_l": (50_649_192, 10.414),
    "flatten_pvt_v2_b0": (3_594_824, 0.586),
    "flatten_pvt_v2_b1": (12_931_240, 2.231),
    "flatten_pvt_v2_b2": (22_548_264, 4.269),
    "flatten_pvt_v2_b3": (38_273_832, 7.310),
    "flatten_pvt_v2_b4": (51_836_968, 10.713),
    "flatten_pvt_v2_b5": (67_061_544, None),
    "flatten_swin_t": (29_192_384, 4.502),
    "flatten_swin_s": (50_510_288, 8.761),
    "flatten_swin_b": (88_972_488, 15.458),
    "flatten_swin_b_384": (91_433_928, 46.491),
    "flatten_cswin_t": (21_201_768, 4.344),
    "flatten_cswin_s": (35_451_752, 6.810),
    "flatten_cswin_b": (74_867_032, 14.957),
    "flatten_cswin_b_384": (78_369_112, 46.433),
    "deit_t": (5_717_416, 1.258),
    "deit_s": (22_050_664, None),
    "deit_b": (86_567_656, None),
    "pvt_t": (13_228_264, 1.937),
    "pvt_s": (24_484_840, 3.824),
    "pvt_m": (44_207_080, None),
    "pvt_l": (61_368_296, None),
    "pvt_v2_b0": (3_666_760, None),
    "pvt_v2_b1": (14_009_000, 2.120),
    "pvt_v2_b2": (25_362_856, 4.046),
    "pvt_v2_b3": (45_238_696, None),
    "pvt_v2_b4": (62_556_072, None),
    "pvt_v2_b5": (81_956_008, None),
    "swin_t": (28_288_354, 4.509),
    "swin_s": (49_606_258, 8.769),
    "swin_b": (87_768_224, 15.468),
    "swin_b_384": (87_903_584, None),
    "cswin_t": (20_393_320, 4.361),
    "cswin_s": (34_643_304, 6.827),
    "cswin_b": (73_053_640, 15.026),
    "cswin_b_384": (73_053_640, None),
    # Of the official classes; their 1e9 multiply-adds where no LayerNorm adds to them.
    "soft_t": (13_069_056, None),
    "soft_s": (38_858_462, None),
    "soft_m": (45_812_707, None),
    "soft_l": (64_700_646, None),
    "soft_h": (87_108_273, None),
    "softpp_t": (13_069_056, None),
    "softpp_s": (38_858_462, None),
    "softpp_m": (45_812_707, None),
    "softpp_l": (64_700_646, None),
    "softpp_h": (87_108_273, None),
    "flowformer": (43_311_304, None),
    "care_s0": (7_340_000, 0.718),
    "care_s1": (9_602_424, 1.029),
    "care_s2": (19_481_288, 1.923),
    "efficientvit_b0": (3_410_008, None),
    "efficientvit_b1": (9_102_024, 0.519),
    "efficientvit_b2": (24_330_712, 1.585),
    "efficientvit_b3": (48_646_056, 3.954),
}


def count(model):
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(abstract_variables(model)["params"]))


@pytest.mark.parametrize("name", SIZES)
def test_size_is_the_published_one(name):
    parameters, giga = SIZES[name]
    model = create_model(name)
    assert count(model) == parameters
    if giga is not None:
        assert multiply_adds(model) / 1e9 == pytest.approx(giga, rel=1e-3)  # the table has three decimals


def test_no_model_is_left_out():
    assert sorted(SIZES) == list_models()
    assert set(PUBLISHED) <= set(SIZES)
    assert set(ALIASES.values()) <= set(SIZES)


# The paper's ablation of the window.
@pytest.mark.parametrize(
    ("window", "parameters"), [(7, 28_317_440), (14, 28_402_112), (28, 28_740_800), (56, 29_192_384)]
)
def test_windows_of_the_ablation_have_the_published_parameters(window, parameters):
    assert count(create_model("flatten_swin_t", window_size=window)) == parameters


def test_multiply_adds_do_not_depend_on_how_a_model_is_computed():
    plain, other = (
        create_model("flatten_swin_t", image_size=64, depths=(1, 1, 2, 1), **options)
        for options in ({}, {"remat": True, "dtype": "bfloat16"})
    )
    assert multiply_adds(plain) == multiply_adds(other)


def test_interpolation_is_not_counted():
    """Reducing keys and values of the first stage 2 x 2 saves kv, k^T v, and adds `sr` and its norm; nothing else."""
    options = dict(image_size=64, depths=(1, 1, 1, 1))
    plain, reduced = (multiply_adds(create_model("flatten_pvt_t", la_sr_ratios=r, **options)) for r in ("1111", "2111"))
    saved = (256 - 64) * (64 * 128 + 64 * 64)
    added = 64 * (4 * 64 * 64 + 5 * 64)
    assert plain - reduced == saved - added


def test_the_release_names_are_understood():
    model = create_model("FLatten_CSWin_96_36292_base_384", depths=(1, 1, 1, 1))
    assert model == create_model("flatten_cswin_b_384", depths=(1, 1, 1, 1))
    assert model.image_size == (384, 384)
    assert not set(ALIASES) & set(list_models())


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("flatten_swim_t", {}, "did you mean 'flatten_swin_t'"),
        ("flatten_pvt_t", {"drop_paths": 0.1}, "did you mean 'drop_path'"),
        ("swin_t", {"kernel_size": 3}, "'kernel_size' has no effect on swin_t with attn_type='softmax'.*focused"),
        ("flatten_pvt_t", {"sr_ratios": (1, 1, 1, 1)}, "'sr_ratios' has no effect"),
        ("pvt_v2_b0", {"la_sr_ratios": "2222"}, "'la_sr_ratios' has no effect"),
        ("pvt_v2_b0", {"remat_policy": "products"}, "'remat_policy' has no effect on pvt_v2_b0 with remat=False"),
        ("cswin_t", {"la_split_size": "14-14-14-7"}, "'la_split_size' has no effect"),
        ("flatten_swin_t", {"attn_type": "LLLL", "softmax_window_size": 8}, "'softmax_window_size' has no effect"),
        ("flatten_swin_t", {"feature_norm": True}, "no effect on flatten_swin_t with features_only=False"),
        ("flatten_swin_t", {"attn_type": "LLS"}, "needs 4 letters"),
        ("flatten_swin_t", {"attn_type": "LLMS"}, "the number of its linear blocks"),
        ("flatten_swin_t", {"attn_type": "LLSS4"}, "the number of its linear blocks"),
        ("flatten_swin_t", {"attn_type": "LLXS"}, "attn_type='X' is not a known attention"),
        ("flatten_swin_t", {"features_only": True, "out_indices": (0, 4)}, "within the 4 levels"),
        ("flatten_cswin_t", {"la_split_size": "56-28"}, "needs a number for each of 4 stages"),
        ("flatten_pvt_t", {"la_sr_ratios": "1110"}, "a digit above 0 for each stage"),
        ("flatten_pvt_t", {"image_size": (230, 224)}, r"nearest that is: \(224, 224\)"),
        ("flatten_deit_t", {"image_size": 100}, "is not divisible by patch_size=16"),
        ("pvt_t", {"image_size": 64, "sr_ratios": (32, 4, 2, 1)}, "is smaller than sr_ratio=32"),
        ("flatten_deit_t", {"class_token": True}, "no class token"),
        ("pvt_t", {"attn_type": "liner"}, "'liner' is not a known attention; did you mean 'linear'"),
        ("pvt_t", {"attn_type": "linear,softmax"}, "names 2 attentions for 4 stages"),
        ("pvt_t", {"attn_type": "linear*1,linear,linear,linear"}, "says 1 blocks for a stage of 2"),
        ("pvt_t", {"attn_type": "linear*x+softmax"}, r"needs a number of blocks after '\*'"),
        ("flatten_pvt_t", {"focusing_factor": (3, 4)}, r"focusing_factor=\(3, 4\) needs 4 entries"),
        ("pvt_t", {"attn_type": "linear", "focusing_factor": 4}, "it is an option of focused"),
    ],
)
def test_a_wrong_option_is_refused_with_one_line(name, options, message):
    with pytest.raises(ValueError, match=message) as error:
        create_model(name, **options)
    assert "\n" not in str(error.value)


def test_options_are_shown_with_their_defaults():
    options = model_options("flatten_cswin_b_384")
    assert (options["attn_type"], options["image_size"], options["focusing_factor"]) == (
        "focused,focused,softmax,softmax",
        (384, 384),
        3,
    )
    assert "focusing_factor" not in model_options("flatten_pvt_t", "linear,linear,softmax,softmax")
