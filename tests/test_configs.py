"""Every config against the recipe as published, and against the model and data that it names."""

import importlib
import json
from pathlib import Path

import pytest
from absl import flags
from ml_collections import config_flags

from configs.recipes import RECIPES
from flatten_jax import list_attentions
from flatten_jax.attention import ATTENTIONS, attention_options
from flatten_jax.data.augment import RESIZE_RATIO
from flatten_jax.models import PUBLISHED, create_model, cswin, deit, model_options, pvt, swin
from flatten_jax.models.registry import FAMILIES as FAMILIES_OF_MODELS
from flatten_jax.training import agreement, run_config, settings
from flatten_jax.training.optimizer import make_schedule

ROOT = Path(__file__).parents[1]
FILES = sorted(p.stem for p in (ROOT / "configs").glob("*.py") if p.stem not in ("__init__", "base", "recipes"))
DOORS = [name for name in FILES if name in RECIPES]

# family: epochs, warm-up epochs, cooldown epochs, learning rates (peak, warm-up, minimum; per 512), clip
FAMILIES = {
    "pvt": (300, 5, 10, (5e-4, 1e-6, 1e-5), 0.0),
    "swin": (300, 20, 0, (5e-4, 5e-7, 5e-6), 5.0),
    "cswin": (300, 20, 10, (5e-4, 1e-6, 1e-5), 0.0),
    "deit": (300, 20, 0, (5e-4, 5e-7, 5e-6), 5.0),
}
# model: batch, drop-path, EMA, weight decay, and what differs from its family
OF_FLATTEN = {
    "deit_t": (1024, 0.1, 0.0, 0.05),
    "deit_s": (1024, 0.1, 0.0, 0.05),
    "deit_b": (1024, 0.1, 0.0, 0.05),
    "pvt_t": (1024, 0.1, 0.0, 0.05),
    "pvt_s": (512, 0.1, 0.0, 0.05),
    "pvt_m": (512, 0.3, 0.0, 0.05, {"clip": 1.0}),
    "pvt_l": (256, 0.3, 0.0, 0.05, {"clip": 1.0}),
    "pvt_v2_b0": (1024, 0.1, 0.0, 0.05),
    "pvt_v2_b1": (1024, 0.1, 0.0, 0.05),
    "pvt_v2_b2": (1024, 0.1, 0.0, 0.05),
    "pvt_v2_b3": (1024, 0.3, 0.0, 0.05, {"clip": 1.0}),
    "pvt_v2_b4": (512, 0.3, 0.0, 0.05, {"clip": 1.0}),
    "swin_t": (1024, 0.2, 0.0, 0.05),
    "swin_s": (1024, 0.3, 0.0, 0.05),
    "swin_b": (512, 0.5, 0.0, 0.05),
    "swin_b_384": (256, 0.5, 0.0, 1e-8, {"epochs": (30, 5, 0), "rates": (2e-5, 2e-8, 2e-7), "resize": 1.0}),
    "cswin_t": (2048, 0.2, 0.99984, 0.05),
    "cswin_s": (1024, 0.4, 0.99984, 0.05),
    "cswin_b": (512, 0.5, 0.99982, 0.1),
    "cswin_b_384": (256, 0.7, 0.99982, 1e-8, {"epochs": (20, 0, 10), "rates": (5e-6, 5e-6, 5e-7)}),
}


# InLine, Agent Attention and PolaFormer. model: batch, drop-path, EMA, weight decay, and what differs from its family
OF_HOSTS = {
    "inline_deit_t": (4096, 0.1, 0.0, 0.05),
    "inline_deit_s": (1024, 0.1, 0.0, 0.05),
    "inline_deit_b": (512, 0.1, 0.0, 0.05),
    "agent_deit_t": (4096, 0.0, 0.0, 0.05),
    "agent_deit_s": (1024, 0.1, 0.0, 0.05),
    "agent_deit_s_448": (512, 0.1, 0.0, 0.05),
    "agent_deit_b": (1024, 0.3, 0.0, 0.05),
    **{f"{paper}_pvt_{size}": (1024, 0.1, 0.0, 0.05) for paper in ("inline", "agent") for size in "ts"},
    **{f"{paper}_pvt_m": (1024, 0.3, 0.0, 0.05, {"clip": 1.0}) for paper in ("inline", "agent")},
    **{f"{paper}_pvt_l": (512, 0.3, 0.0, 0.05, {"clip": 1.0}) for paper in ("inline", "agent")},
    "agent_pvt_m_256": (512, 0.3, 0.0, 0.05, {"clip": 1.0}),
    **{
        f"{paper}_{swin}": OF_FLATTEN[swin]
        for paper in ("inline", "agent", "pola")
        for swin in OF_FLATTEN
        if swin[0] == "s"
    },
    "agent_swin_s_288": (512, 0.3, 0.0, 0.05, {"resize": 1.0}),
    **{f"pola_pvt_{size}": OF_FLATTEN[f"pvt_{size}"] for size in "tsml"},
    "inline_cswin_t": (1024, 0.2, 0.9999, 0.05),
    "inline_cswin_s": (1024, 0.4, 0.9999, 0.05),
    "inline_cswin_b": (512, 0.5, 0.99995, 0.1),
    "inline_cswin_b_384": (256, 0.7, 0.999975, 1e-8, OF_FLATTEN["cswin_b_384"][4]),
    "agent_cswin_t": (1024, 0.2, 0.99984, 0.05),
    "agent_cswin_s": (1024, 0.4, 0.99984, 0.05),
    "agent_cswin_b": (512, 0.5, 0.99992, 0.1),
    "agent_cswin_b_384": (256, 0.7, 0.9998, 1e-8, OF_FLATTEN["cswin_b_384"][4]),
}
OF_DEIT = {
    f"deit_{size}_distilled": (1024, 0.1, 0.0, 0.05, {"epochs": (300, 5, 10), "rates": (5e-4, 5e-7, 5e-6), "clip": 0.0})
    for size in "tsb"
}
PUBLISHED_RECIPES = {
    **OF_FLATTEN,
    **OF_DEIT,
    **{f"flatten_{backbone}": recipe for backbone, recipe in OF_FLATTEN.items()},
    **OF_HOSTS,
}


def load(file, arg=""):
    return importlib.import_module(f"configs.{file}").get_config(arg)


def parse(*arguments):
    """The config that main.py gets from these flags."""
    values, argv = flags.FlagValues(), ["main.py", *arguments]
    config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=argv)
    values(argv)
    return values.config


def build(config):
    return create_model(**{k: v for k, v in config.model.items() if v is not None})


def test_every_model_with_a_published_number_has_a_recipe():
    assert PUBLISHED.keys() <= RECIPES.keys()


def test_no_host_is_left_out():
    assert {name for family in (deit, pvt, swin, cswin) for name in family.MODELS} <= PUBLISHED_RECIPES.keys()


@pytest.mark.parametrize("name", PUBLISHED_RECIPES)
def test_recipe_is_the_published_one(name):
    config = load("published", name)
    batch, drop_path, ema, decay, *rest = PUBLISHED_RECIPES[name]
    special = rest[0] if rest else {}
    *epochs, rates, clip = FAMILIES[next(word for word in name.split("_") if word in FAMILIES)]
    train, optimizer = config.train, config.optimizer
    assert config.model.name == name
    assert (train.batch_size, config.model.drop_path) == (batch, drop_path)
    assert (train.ema_decay, optimizer.weight_decay) == (pytest.approx(ema, rel=1e-7), decay)
    assert (train.epochs, train.warmup_epochs, train.cooldown_epochs) == tuple(special.get("epochs", epochs))
    assert (optimizer.learning_rate, optimizer.warmup_learning_rate, optimizer.min_learning_rate) == special.get(
        "rates", rates
    )
    assert optimizer.clip_norm == special.get("clip", clip)
    assert config.eval.resize_ratio == special.get("resize", RESIZE_RATIO)


def test_what_all_published_recipes_share():
    config = load("published", "flatten_pvt_t")
    optimizer, augment = config.optimizer, config.augment
    assert (optimizer.b1, optimizer.b2, optimizer.eps) == (0.9, 0.999, 1e-8)
    assert (augment.scale, augment.hflip, augment.rand_augment) == ((0.08, 1.0), 0.5, "rand-m9-mstd0.5-inc1")
    assert (augment.erase_prob, augment.mixup, augment.cutmix, augment.label_smoothing) == (0.25, 0.8, 1.0, 0.1)
    assert (augment.mix_prob, augment.switch_prob) == (1.0, 0.5)
    assert (config.train.accumulation, config.model.dtype, config.data.name) == (1, "float32", "imagenet2012")


@pytest.mark.parametrize("variant", ["", ",smoke"])
@pytest.mark.parametrize("name", RECIPES)
def test_published_config_names_its_model(name, variant):
    config = settings.checked(load("published", name + variant))
    options = {k: v for k, v in config.model.items() if v is not None and k != "name"}
    assert options.keys() <= model_options(name).keys()
    if not variant:
        assert options.pop("drop_path") == RECIPES[name].drop_path
        assert options == {"num_classes": 1000, "image_size": model_options(name)["image_size"], "dtype": "float32"}


@pytest.mark.parametrize("family", [family for family in FAMILIES_OF_MODELS if family != "lra"])
def test_a_smoke_of_every_family_builds_its_model(family):
    """But for its depth; whole models are traced by tests/models/test_registry.py."""
    name = next(name for name in FAMILIES_OF_MODELS[family].MODELS if name in RECIPES)
    config = load("published", f"{name},smoke")
    shallow = {"depth": 1, "depths": (1,) * len(model_options(name).get("depths", ()))}
    config.model.update({k: v for k, v in shallow.items() if k in config.model})
    model = build(config)
    assert (model.num_classes, model.image_size) == (config.model.num_classes, config.model.image_size)


def test_cifar10_builds_its_model():
    assert build(load("cifar10")).image_size == (32, 32)


# Steps, batch, peak of the learning rate, warm-up steps, of the official configs; and examples they train on.
ARENA = {
    ("lra_image", ""): (35_000, 256, 5e-4, 175, 45_000),
    ("lra_pathfinder", ""): (62_400, 512, 1e-3, 312, 160_000),
    ("lra_pathfinder", "64"): (62_400, 512, 1e-3, 312, 160_000),
    ("lra_pathfinder", "128,linear"): (62_400, 512, 1e-3, 312, 160_000),
    ("lra_listops", ""): (5_000, 32, 0.05 / 1000**0.5, 1000, 96_000),
}


@pytest.mark.parametrize(("file", "variant"), ARENA)
def test_the_arenas_recipes_are_the_official_ones(file, variant):
    config = settings.checked(load(file, variant) if file != "lra_image" else parse_with_folder(file))
    steps, batch, peak, warmup, examples = ARENA[file, variant]
    epoch = examples // config.train.batch_size
    assert (round(config.train.epochs * epoch), round(config.train.warmup_epochs * epoch)) == (steps, warmup)
    assert config.train.batch_size == batch
    schedule = make_schedule(config.optimizer, batch_size=batch, warmup_steps=warmup, total_steps=steps)
    assert float(schedule(warmup)) == pytest.approx(peak, rel=1e-3)
    if file == "lra_listops":
        assert float(schedule(4000)) == pytest.approx(0.05 / 4000**0.5, rel=1e-5)
        assert float(schedule(500)) == pytest.approx(0.05 * 0.5 / 1000**0.5, rel=1e-5)
    assert (config.optimizer.b1, config.optimizer.b2, config.optimizer.eps) == (0.9, 0.98, 1e-9)
    assert build(config).image_size == tuple(config.model.image_size)


def parse_with_folder(file):
    return parse(f"--config=configs/{file}.py", "--config.data.folder=somewhere")


@pytest.mark.parametrize("file", ["lra_image", "lra_pathfinder", "lra_listops"])
def test_an_unknown_variant_of_the_arenas_is_refused(file):
    with pytest.raises(ValueError, match=f"unknown variant '48' of configs/{file}.py.*smoke"):
        load(file, "48")


@pytest.mark.parametrize("file", FILES)
def test_config_opens_with_its_command_hardware_and_accuracy(file):
    text = importlib.import_module(f"configs.{file}").__doc__
    assert f"python main.py --config configs/{file}.py" in text
    assert "\nFor " in text
    assert "not run here" in text or file in ("digits", "mosaic")


@pytest.mark.parametrize("variant", ["", "smoke"])
@pytest.mark.parametrize("name", DOORS)
def test_door_opens_to_the_published_config(name, variant):
    assert load(name, variant).to_json() == load("published", f"{name},{variant}").to_json()


def test_unknown_variant_is_refused():
    with pytest.raises(ValueError, match=r"unknown variant 'tiny'.*smoke"):
        load("digits", "tiny")


def test_unknown_model_is_refused_and_the_nearest_named():
    with pytest.raises(ValueError, match="did you mean 'flatten_swin_b'"):
        load("published", "flaten_swin_b")


def test_digits_are_trained_with_any_attention():
    """All in one model; what looks at the block before is not the first."""
    names = sorted(list_attentions(), key=lambda name: ATTENTIONS[name].takes_before)
    model = build(
        parse(
            "--config=configs/digits.py",
            f"--config.model.attn_type={','.join(names)}",
            f"--config.model.depth={len(names)}",
        )
    )
    assert model.attentions() == [tuple(names)]


@pytest.mark.parametrize("attention", list_attentions())
def test_every_option_of_an_attention_is_parsed(attention):
    """One value as the flag has it, and one for each stage."""
    options = attention_options(attention)
    given = {o: v for o, v in options.items() if v is not None}
    config = parse("--config=configs/flatten_pvt_t.py", *(f"--config.model.{o}={v}" for o, v in given.items()))
    assert {o: config.model[o] for o in given} == given
    given = {o: (v,) * 4 for o, v in given.items() if not isinstance(v, bool)}
    config = parse("--config=configs/flatten_pvt_t.py", *(f"--config.model.{o}={v}" for o, v in given.items()))
    assert {o: config.model[o] for o in given} == given


def test_words_for_a_number_are_refused():
    """Flags of attentions take any literal, so that one for each stage can be written."""
    with pytest.raises(ValueError, match="kernel_size='five' must be of the kind of its default, 5"):
        build(parse("--config=configs/digits.py", "--config.model.kernel_size=five"))


def test_old_run_without_the_newer_options_can_be_resumed(tmp_path):
    """None now, and nothing in the folder's config."""
    config = load("digits")
    config.model.attn_type = "S"
    old = json.loads(config.to_json())
    old["model"] = {k: v for k, v in old["model"].items() if v is not None}
    old["train"].update(epochs=20, warmup_epochs=2, cooldown_epochs=0)  # which were whole numbers
    for key, setting in settings.SETTINGS.items():
        if setting.before is not None:
            section, name = key.split(".")
            del old[section][name]
    (tmp_path / "config.json").write_text(json.dumps(old))
    assert run_config.get_config(str(tmp_path)).augment.repeats == 1
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n')
    agreement.claim(tmp_path, config, ("a", "b"))


def test_a_folder_in_which_no_step_was_taken_is_not_a_run_of_another_config(tmp_path):
    agreement.claim(tmp_path, load("digits"), ("a", "b"))
    config = load("digits")
    config.train.batch_size = 32
    agreement.claim(tmp_path, config, ("a", "c"))
    assert json.loads((tmp_path / "config.json").read_text())["train"]["batch_size"] == 32
    for trace in ("checkpoints/12", "metrics.jsonl"):
        (tmp_path / trace).parent.mkdir(exist_ok=True)
        (tmp_path / trace).write_text("{}")
        with pytest.raises(ValueError, match=r"train\.batch_size: 32 there, 64 now"):
            agreement.claim(tmp_path, load("digits"), ("a", "c"))
        with pytest.raises(ValueError, match=r"only there \['c'\], only now \['b'\]"):
            agreement.claim(tmp_path, config, ("a", "b"))
        (tmp_path / trace).unlink()
