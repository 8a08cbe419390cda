"""Every config against the recipe as published, and against the model and data that it names."""

import importlib
from pathlib import Path

import pytest

from flatten_jax.models import create_model, list_models

FOLDER = Path(__file__).parents[1] / "configs"
NAMES = sorted(path.stem for path in FOLDER.glob("*.py") if path.stem not in ("__init__", "base"))

# family: epochs, warm-up epochs, cooldown epochs, learning rates (peak, warm-up, minimum; per 512), clip
FAMILIES = {
    "pvt": (300, 5, 10, (5e-4, 1e-6, 1e-5), 0.0),
    "swin": (300, 20, 0, (5e-4, 5e-7, 5e-6), 5.0),
    "cswin": (300, 20, 10, (5e-4, 1e-6, 1e-5), 0.0),
    "deit": (300, 20, 0, (5e-4, 5e-7, 5e-6), 5.0),
}
# model: batch, drop-path, EMA, weight decay, and what differs from its family
RECIPES = {
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
PUBLISHED = [name for name in NAMES if name not in ("digits", "cifar10")]


def load(name, arg=""):
    return importlib.import_module(f"configs.{name}").get_config(arg)


def test_every_flatten_model_with_a_published_number_has_a_config():
    unpublished = {"flatten_pvt_v2_b5"}
    assert set(list_models("flatten_*")) - unpublished <= set(NAMES)


@pytest.mark.parametrize("name", PUBLISHED)
def test_recipe_is_the_published_one(name):
    config, model = load(name), name.removeprefix("flatten_")
    batch, drop_path, ema, decay, *rest = RECIPES[model]
    special = rest[0] if rest else {}
    *epochs, rates, clip = FAMILIES[model.split("_")[0]]
    assert config.model.name == name
    assert (config.train.batch_size, config.model.drop_path) == (batch, drop_path)
    assert (config.train.ema_decay, config.optimizer.weight_decay) == (ema, decay)
    assert (config.train.epochs, config.train.warmup_epochs, config.train.cooldown_epochs) == tuple(
        special.get("epochs", epochs)
    )
    optimizer = config.optimizer
    assert (optimizer.learning_rate, optimizer.warmup_learning_rate, optimizer.min_learning_rate) == special.get(
        "rates", rates
    )
    assert optimizer.clip_norm == special.get("clip", clip)
    assert (optimizer.b1, optimizer.b2, optimizer.eps) == (0.9, 0.999, 1e-8)
    assert config.eval.resize_ratio == special.get("resize", 256 / 224)
    augment = config.augment
    assert (augment.scale, augment.hflip, augment.rand_augment) == ((0.08, 1.0), 0.5, "rand-m9-mstd0.5-inc1")
    assert (augment.erase_prob, augment.mixup, augment.cutmix, augment.label_smoothing) == (0.25, 0.8, 1.0, 0.1)
    assert (augment.mix_prob, augment.switch_prob) == (1.0, 0.5)
    assert (config.train.accumulation, config.model.dtype, config.data.name) == (1, "float32", "imagenet2012")


@pytest.mark.parametrize("name", NAMES)
def test_config_opens_with_its_command_hardware_and_accuracy(name):
    text = importlib.import_module(f"configs.{name}").__doc__
    assert f"python main.py --config configs/{name}.py --workdir runs/{name}" in text
    assert "\nFor " in text
    assert "not run here" in text or name == "digits"


@pytest.mark.parametrize("arg", ["", "smoke"])
@pytest.mark.parametrize("name", NAMES)
def test_config_builds_its_model(name, arg):
    config = load(name, arg)
    model = create_model(**{k: v for k, v in config.model.items() if v is not None})
    assert (model.num_classes, model.image_size) == (config.model.num_classes, config.model.image_size)


def test_unknown_variant_is_refused():
    with pytest.raises(ValueError, match=r"unknown variant 'tiny'.*smoke"):
        load("digits", "tiny")
