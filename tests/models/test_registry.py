"""Names, parameter counts, multiply-adds and options of every listed model."""

import math
from pathlib import Path

import jax
import pytest
from flax.core import FrozenDict

from flatten_jax import create_model, list_models, model_options
from flatten_jax.models import PUBLISHED, abstract_variables, multiply_adds
from flatten_jax.models.registry import ALIASES, FAMILIES, MODELS

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
    "deit_t_distilled": (5_910_800, None),
    "deit_s_distilled": (22_436_432, None),
    "deit_b_distilled": (87_338_192, None),
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
    # Of the official classes.
    "ravlt_t": (14_897_768, None),
    "ravlt_s": (25_591_208, None),
    "ravlt_b": (48_241_288, None),
    "ravlt_l": (95_242_440, None),
    "mavit_t": (16_449_128, None),
    "mavit_s": (27_142_568, None),
    "mavit_b": (49_792_648, None),
    "mavit_l": (97_766_088, None),
    "mila_t": (24_392_200, None),
    "mila_s": (43_015_048, None),
    "mila_b": (95_983_960, None),
    "l2vit_t": (28_596_781, None),
    "l2vit_s": (50_199_157, None),
    "l2vit_b": (88_577_188, None),
    "l2vit_b_384": (88_577_188, None),
    "vvt_t": (12_882_440, None),
    "vvt_s": (25_492_264, None),
    "vvt_m": (47_907_304, None),
    "vvt_l": (61_848_520, None),
    # Counted from the official classes.
    "inline_deit_t": (6_477_736, None),
    "inline_deit_s": (16_734_760, None),
    "inline_deit_b": (23_797_096, None),
    "agent_deit_t": (6_015_640, None),
    "agent_deit_s": (22_647_112, None),
    "agent_deit_s_448": (23_070_472, None),
    "agent_deit_b": (87_204_904, None),
    "inline_pvt_t": (12_032_232, None),
    "inline_pvt_s": (21_556_136, None),
    "inline_pvt_m": (37_618_856, None),
    "inline_pvt_l": (51_154_280, None),
    "agent_pvt_t": (11_570_352, None),
    "agent_pvt_s": (20_635_066, None),
    "agent_pvt_m": (35_921_746, None),
    "agent_pvt_m_256": (36_083_682, None),
    "agent_pvt_l": (48_738_180, None),
    "pola_pvt_t": (12_924_648, None),
    "pola_pvt_s": (23_157_224, None),
    "pola_pvt_m": (39_965_672, None),
    "pola_pvt_l": (54_366_568, None),
    "inline_swin_t": (29_223_544, None),
    "inline_swin_s": (49_793_296, None),
    "inline_swin_b": (88_350_120, None),
    "inline_swin_b_384": (88_465_320, None),
    "agent_swin_t": (28_902_964, None),
    "agent_swin_s": (49_666_684, None),
    "agent_swin_s_288": (49_707_964, None),
    "agent_swin_b": (88_095_096, None),
    "agent_swin_b_384": (88_305_016, None),
    "pola_swin_t": (29_285_696, None),
    "pola_swin_s": (50_603_600, None),
    "pola_swin_b": (89_137_864, None),
    "pola_swin_b_384": (91_599_304, None),
    "inline_cswin_t": (20_604_520, None),
    "inline_cswin_s": (33_032_872, None),
    "inline_cswin_b": (73_413_640, None),
    "inline_cswin_b_384": (73_413_640, None),
    "agent_cswin_t": (20_458_672, None),
    "agent_cswin_s": (32_814_100, None),
    "agent_cswin_b": (73_249_696, None),
    "agent_cswin_b_384": (73_328_416, None),
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
    # Of the originals' classes, as the specification has them; of XCiT with patches of 8 the stem differs.
    "vig_t": (5_834_536, None),
    "vig_s": (22_615_144, None),
    "vig_b": (89_022_184, None),
    "vig_h_t": (28_600_680, None),
    "vig_h_s": (50_051_688, None),
    "vig_h_b": (88_904_360, None),
    "xcit_n12_p16": (3_053_224, None),
    "xcit_t12_p16": (6_716_272, None),
    "xcit_s12_p16": (26_253_304, None),
    "xcit_t24_p16": (12_116_896, None),
    "xcit_s24_p16": (47_671_384, None),
    "xcit_m24_p16": (84_395_752, None),
    "xcit_l24_p16": (189_096_136, None),
    "xcit_n12_p8": (3_049_016, None),
    "xcit_t12_p8": (6_706_504, None),
    "xcit_s12_p8": (26_213_032, None),
    "xcit_t24_p8": (12_107_128, None),
    "xcit_s24_p8": (47_631_112, None),
    "xcit_m24_p8": (84_323_624, None),
    "xcit_l24_p8": (188_932_648, None),
    "mhla_deit_t": (5_793_832, None),
    "mhla_deit_s": (22_200_424, None),
    "mhla_deit_b": (86_864_104, None),
    "hyena_deit_t": (6_042_400, None),
    "hyena_deit_s": (22_594_144, None),
    "hyena_deit_t_product": (6_290_464, None),
    "hyena_deit_t_hybrid": (5_906_830, None),
    "skipat_deit_t": (6_665_530, None),
    "skipat_deit_s": (25_716_346, None),
    "skipat_deit_b": (100_976_890, None),
    "convnext_t": (28_589_128, None),
    "convnext_s": (50_223_688, None),
    "convnext_b": (88_591_464, None),
    "convnext_l": (197_767_336, None),
    "convnext_isotropic_s": (22_308_712, None),
    "convnext_isotropic_b": (87_083_752, None),
    "convnext_isotropic_l": (305_942_504, None),
    "hornet_t": (22_409_512, None),
    "hornet_t_gf": (22_991_848, None),
    "hornet_s": (49_528_264, None),
    "hornet_s_gf": (50_401_768, None),
    "hornet_b": (87_256_680, None),
    "hornet_b_gf": (88_421_352, None),
    "hornet_b_gf_384": (92_099_560, None),
    "hornet_l": (194_542_504, None),
    "hornet_l_gf": (196_289_512, None),
    "hornet_l_gf_384": (201_806_824, None),
    "cvt_13": (19_997_480, None),
    "cvt_13_384": (19_997_480, None),
    "cvt_21": (31_622_696, None),
    "cvt_21_384": (31_622_696, None),
    "cvt_w24": (277_196_392, None),
    "sret_t": (4_755_979, None),
    "sret_lt": (4_988_024, None),
    "sret_s": (20_899_692, None),
    "sret_t_wo_slice": (4_755_979, None),
    "sret_lt_wo_slice": (4_988_024, None),
    "sret_s_wo_slice": (20_899_692, None),
    "svt_h_s": (22_052_592, None),
    "svt_h_b": (32_878_544, None),
    "svt_h_l": (54_594_000, None),
    "crossvit_ti": (7_014_800, None),
    "crossvit_s": (26_856_272, None),
    "crossvit_b": (105_025_232, None),
    "crossvit_9": (8_553_296, None),
    "crossvit_15": (27_528_464, None),
    "crossvit_18": (43_271_408, None),
    "crossvit_9_dagger": (8_776_592, None),
    "crossvit_15_dagger": (28_209_008, None),
    "crossvit_18_dagger": (44_266_976, None),
    "crossvit_15_dagger_384": (28_500_080, None),
    "crossvit_18_dagger_384": (44_606_560, None),  # by its positions more than at 240 px; no such figure
    # Without the zeros that the original keeps.
    "tnt_s": (23_843_848 - 196 * 384, None),
    "tnt_b": (65_554_120 - 196 * 640, None),
    "msvmamba_n": (6_864_136, None),
    "msvmamba_m": (11_879_272, None),
    "msvmamba_t": (33_046_312, None),
    "stvit_r_swin_t": (28_320_214, None),
    "stvit_r_swin_s": (49_625_518, None),
    "stvit_r_swin_b": (87_812_336, None),
    # By formula, from the shapes of the official configs (tests/models/test_lra.py).
    "lra_image": (248_458, None),
    "lra_pathfinder": (26_530, None),
    "lra_pathfinder_linear": (116_098, None),
    "lra_listops": (8_948_234, None),
}


def count(model):
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(abstract_variables(model)["params"]))


def listed(name):
    """A model as it is listed, which is not traced yet."""
    settings = MODELS[name].settings
    return MODELS[name].family(**{**settings, "attn_options": FrozenDict(settings.get("attn_options", {}))})


@pytest.mark.parametrize("name", SIZES)
def test_parameters_and_multiply_adds_are_the_published_ones(name):
    """Both of one model, as the parameters' shapes, which take the longest, are traced once for both."""
    model, (parameters, giga) = listed(name), SIZES[name]
    assert count(model) == parameters
    if giga is not None:  # the table has three decimals
        assert multiply_adds(model) / 1e9 == pytest.approx(giga, rel=1e-3)


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
    assert {name: ALIASES[name] for name in ("agent_deit_small_448", "Agent_CSWin_small", "inline_cswin_base_384")} == {
        "agent_deit_small_448": "agent_deit_s_448",
        "Agent_CSWin_small": "agent_cswin_s",
        "inline_cswin_base_384": "inline_cswin_b_384",
    }


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
        ("deit_t", {"attn_type": "linear*13+softmax"}, r"no block for softmax: the stages have \[12\] blocks"),
        ("swin_t", {"attn_type": "linear,linear,linear*6+rala,linear"}, "no block for rala"),
        ("deit_t", {"image_size": "224"}, "image_size='224' must be a whole number of pixels"),
        ("deit_t", {"image_size": 224.0}, "image_size=224.0 must be"),
        ("deit_t", {"image_size": -32}, "image_size=-32 must be"),
        ("deit_t", {"image_size": (224,)}, r"image_size=\(224,\) must be"),
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


def test_every_family_has_its_line_in_the_documents():
    text = (Path(__file__).parents[2] / "docs/models.md").read_text()
    assert [family for family in FAMILIES if f"\n| `{family}` | " not in text] == []
