"""Values in a config that are wrong, misspelt or at odds: refused together, a line each, before anything is opened."""

import importlib
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from configs import digits
from flatten_jax.cli.config_file import read_config
from flatten_jax.training import setup
from flatten_jax.training.settings import SETTINGS, checked, flat

ROOT = Path(__file__).parents[2]
SMALL = (
    "--config.model.patch_size=16",
    "--config.model.embed_dim=16",
    "--config.model.depth=1",
    "--config.model.num_heads=2",
    "--config.train.batch_size=64",
    "--config.eval.batch_size=64",
)


@pytest.fixture(autouse=True)
def where_configs_are(monkeypatch):
    monkeypatch.chdir(ROOT)


def read(*overrides):
    return read_config("configs/flatten_deit_t.py:smoke", [*SMALL, *(f"--config.{o}" for o in overrides)])


def test_every_setting_of_every_config_is_in_the_table_and_every_default_is_allowed():
    for file in ("digits", "cifar10", "finetune", "published"):
        config = importlib.import_module(f"configs.{file}").get_config(*["flatten_pvt_t"] * (file == "published"))
        given = {key: value for key, value in flat(config).items() if key in SETTINGS or not key.startswith("model.")}
        assert given.keys() == SETTINGS.keys()
        for key, value in given.items():
            assert SETTINGS[key].takes(value), key


OUTSIDE = {
    "eval.resize": ("warp", "", "Short"),
    "seed": (-1, 2**32),
    "model.num_classes": (-1,),
    "model.drop_path": (-0.5, 1.0),
    "model.dtype": ("int8", "bf17", "float64", ""),
    "data.workers": (-1,),
    "data.on_corrupt": ("ignore",),
    "data.examples": (-5,),
    "data.mean": ("(0.5,0.5)", "0.5", "(0.5,0.5,1.5)", "(-0.1,0.5,0.5)"),
    "data.std": ("(0.5,0.5)", "(0.5,0.5,0)", "half"),
    "augment.repeats": (0, -1),
    "augment.scale": ("big", "(1.0,0.08)", "(0,1)", "(0.1,1.5)", "0.5", "('a','b')", "(0.1,0.2,0.3)", "(True,True)"),
    "augment.ratio": ("(2,1)", "wide", "(0,1)"),
    "augment.hflip": (-0.1, 1.1),
    "augment.rand_augment": ("rand-m99", "auto", "m9"),
    "augment.erase_prob": (-1, 1.1),
    "augment.mixup": (-0.8,),
    "augment.cutmix": (-1,),
    "augment.mix_prob": (2, -0.1),
    "augment.switch_prob": (2,),
    "augment.label_smoothing": (-0.1, 1.5, 1),
    "train.batch_size": (0, -4),
    "train.accumulation": (0, -1),
    "train.epochs": (0, -1, "nan", "inf"),
    "train.warmup_epochs": (-1,),
    "train.cooldown_epochs": (-1,),
    "train.ema_decay": (1, -0.1),
    "train.skip_nonfinite_steps": (-1,),
    "optimizer.learning_rate": (-1, "nan"),
    "optimizer.warmup_learning_rate": (-1,),
    "optimizer.min_learning_rate": (-1,),
    "optimizer.weight_decay": (-1,),
    "optimizer.clip_norm": (-1,),
    "optimizer.schedule": ("linear",),
    "optimizer.power": (0, -1),
    "optimizer.decay": ("some", ""),
    "optimizer.b1": (1, -0.1),
    "optimizer.b2": (1,),
    "optimizer.eps": (0,),
    "distill.kind": ("medium", "Soft"),
    "distill.alpha": (-0.1, 1.5),
    "distill.tau": (0, -1),
    "distill.reduction": ("mean",),
    "distill.weight": (-1, "inf"),
    "distill.match": ("maps",),
    "distill.learns": ("all",),
    "distill.features": ("l1",),
    "distill.new_factor": (0,),
    "linearize.copy": ("some",),
    "linearize.search": (-1,),
    "linearize.align_epochs": (0,),
    "linearize.align_learning_rate": (0,),
    "linearize.features_epochs": (-1,),
    "segmentation.channels": (-1,),
    "segmentation.mosaic": ("hexagons", ""),
    "segmentation.resize": ("(0,512)", "512", "(2048,512)"),
    "segmentation.ratio": ("(0,2)", "(2,1)"),
    "segmentation.cat_max_ratio": (0, 1.1),
    "segmentation.auxiliary_weight": (-0.4,),
    "segmentation.eval": ("crop",),
    "segmentation.stride": (0,),
    "segmentation.multiple": (0,),
    "eval.every_epochs": (0, -1, "inf"),
    "eval.batch_size": (0,),
    "eval.resize_ratio": (0.5,),
    "checkpoint.every_epochs": (0, -0.5),
    "checkpoint.keep": (0,),
    "mesh.fsdp": (0,),
    "log_every_steps": (0, -1),
    "tracker.name": ("mlflow", "WandB"),
    "model.depth": (0,),
    "model.num_heads": (0,),
    "model.patch_size": (-1,),
    "model.embed_dim": (0,),
    "model.image_size": ("(3,32,32)", "abc", "(0,32)", "(32.5,32)", "()"),
}


@pytest.mark.parametrize("key", OUTSIDE)
def test_a_value_outside_is_one_line_with_the_key_and_the_value(key):
    for value in OUTSIDE[key]:
        with pytest.raises(ValueError) as error:
            checked(read(f"{key}={value}"))
        said = str(error.value)
        assert said.startswith(f"{key}=") and len(said.splitlines()) == 1, said
        assert str(value).strip("()").split(",")[0].rstrip("0") in said


def test_the_table_of_this_test_leaves_no_range_out():
    assert {key for key, setting in SETTINGS.items() if setting.values} <= OUTSIDE.keys()


def test_all_that_is_wrong_is_said_at_once():
    with pytest.raises(ValueError) as error:
        checked(read("train.accumulation=0", "log_every_steps=0", "optimizer.learning_rate=-1"))
    first, *lines = str(error.value).splitlines()
    assert first == "3 settings of the config are wrong:"
    assert [line.split("=")[0].strip() for line in lines] == [
        "train.accumulation",
        "optimizer.learning_rate",
        "log_every_steps",
    ]


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["train.warmup_epochs=30"], "train.warmup_epochs=30 is longer than the training, train.epochs=3"),
        (["optimizer.min_learning_rate=1"], "optimizer.min_learning_rate=1 is above the peak"),
        (["optimizer.warmup_learning_rate=1"], "optimizer.warmup_learning_rate=1 is above the peak"),
        (["data.folder=/x"], "data.folder='/x' has no effect on data.name='synthetic': add --config.data.name=folder"),
        (["data.folder=/x", "data.name=foldr"], "data.name='foldr' takes no data.folder='/x'; did you mean 'folder'?"),
        (["data.name=folder"], "data.name='folder' needs --config.data.folder=PATH"),
        (["init_new_head=True"], "init_new_head=True has no effect without --config.init_from=PATH"),
        (["model.features_only=True"], "model.features_only=True gives maps"),
        (["init_from=s3://bucket/run"], "--config.init_from=s3://bucket/run: of addresses only gs:// is read"),
        (["data.data_dir=gs://b/data"], "data.data_dir=gs://b/data: data are not read from a bucket: have them copied"),
        (["data.name=folder", "data.folder=s3://b/pictures"], "data.folder=s3://b/pictures: such an address is not"),
        (["data.cache_dir=gs://b/copy"], "data.cache_dir=gs://b/copy: such an address is not read here"),
        (["data.cache_dir=/copy"], "data.cache_dir='/copy' has no effect on data that are not in a bucket, gs://"),
        (["distill.kind=hard"], "distill.kind='hard' needs a teacher: add --config.distill.teacher=PATH"),
        (["distill.weight=50"], "distill.weight=50 needs a teacher"),
        (["distill.teacher=x"], "distill.teacher='x' has no effect: say what it teaches"),
        (["distill.kind=mesa", "distill.weight=1"], "train.ema_decay=0 and distill.weight=1 must be above 0"),
        (
            ["distill.kind=align", "distill.teacher=x", "distill.match=map", "distill.learns=qkv"],
            "distill.learns='qkv' has no effect on distill.match='map'",
        ),
        (
            ["distill.kind=align", "distill.teacher=x", "distill.weight=1"],
            "distill.weight=1 has no effect on distill.k",
        ),
        (["linearize.attention=linear"], "linearize.attention='linear' needs a teacher"),
        (["linearize.attention=linear", "distill.teacher=x", "distill.kind=align"], "is a stage of a conversion"),
    ],
)
def test_values_that_do_not_fit_together(overrides, said):
    with pytest.raises(ValueError) as error:
        checked(read(*overrides))
    assert said in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["modle.depth=3"], "--config.modle.depth is not a setting; did you mean 'model.depth'?"),
        (["optimzer.learning_rate=1"], "did you mean 'optimizer.learning_rate'?"),
        (["learning_rate=1"], "--config.learning_rate is not a setting; did you mean 'optimizer.learning_rate'?"),
        (["lr=1"], "--config.lr is not a setting; `flatten-jax config configs/flatten_deit_t.py:smoke` lists all"),
        (["model=deit_t"], "--config.model is a group"),
        (["train.epochs=many"], "--config.train.epochs=many must be a number, above 0 and finite"),
        (["seed=1.5"], "--config.seed=1.5 must be a whole number in [0, 4294967295]"),
        (["init_new_head=maybe"], "--config.init_new_head=maybe must be True or False"),
        (["model.depth=two"], "--config.model.depth=two"),
    ],
)
def test_an_override_that_cannot_be_read_is_one_line(overrides, said):
    with pytest.raises(ValueError) as error:
        read(*overrides)
    assert said in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("mlp_ratio=-1", "model.mlp_ratio=-1.0 does not fit flatten_deit_t (TypeError"),
        ("kernel_size=0", "model.kernel_size=0 does not fit flatten_deit_t (ZeroDivisionError"),
        ("num_heads=3", "channels=16 is not divisible by num_heads=3"),
    ],
)
def test_a_model_that_cannot_be_built_names_the_option(option, said):
    with pytest.raises(ValueError) as error:
        setup.prepare(read(f"model.{option}"))
    assert said in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("names", "dtype"),
    [
        (("float32", "fp32", "f32", "float", "torch.float32"), "float32"),
        (("bfloat16", "bf16", "BF16", "jnp.bfloat16"), "bfloat16"),
        (("float16", "fp16", "half", "f16"), "float16"),
    ],
)
def test_dtypes_as_people_write_them(names, dtype):
    for name in names:
        config = read(f"model.dtype={name}")
        assert checked(config).model.dtype == dtype
        assert config.model.dtype == name, "the caller's config is not changed"
    assert str(setup.model_of(checked(config)).dtype) == dtype


def test_one_side_is_a_square():
    assert setup.prepare(read("model.image_size=32")).model.image_size == (32, 32)


def test_durations_may_be_fractions():
    run = setup.prepare(read("train.batch_size=16", "train.epochs=1.5", "train.warmup_epochs=0.25"))
    assert (run.steps_per_epoch, run.total_steps) == (4, 6)
    peak = float(run.training.schedule(1))
    assert peak > float(run.training.schedule(2)) > float(run.training.schedule(5))
    assert setup.prepare(read("train.epochs=0.001", "train.warmup_epochs=0")).total_steps == 1


def test_a_batch_above_the_evaluation_set_is_cut_and_said():
    run = setup.prepare(read("data.examples=66", "eval.batch_size=1000"))
    assert (run.eval_batch_size, run.num_eval_batches) == (72, 1)  # whole on eight devices
    assert run.notes() == ["the evaluation set fits into one batch of 72, below eval.batch_size=1000"]
    assert setup.prepare(read()).notes() == []


def test_what_an_epoch_leaves_out_is_said():
    (note,) = setup.prepare(read("data.examples=100")).notes()
    assert "leaves out 36 of 100 pictures" in note and note.endswith("--config.train.batch_size=48 leaves out 4")
    with pytest.raises(ValueError, match=r"train\.batch_size=64 gives no whole batch.*--config\.train\.batch_size=16"):
        setup.prepare(read("data.examples=40"))


def test_a_setting_that_nobody_reads_and_one_that_is_missing():
    config = digits.get_config()
    config.train.grad_clip = 1.0
    del config["mesh"]
    with pytest.raises(ValueError, match=r"(?s)the config has no mesh\.fsdp.*train\.grad_clip=1\.0 is not a setting"):
        checked(config)


@pytest.fixture
def folder(tmp_path):
    """Class folders alone, with twenty pictures each."""
    for i in range(60):
        path = tmp_path / "pictures" / "abc"[i % 3] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((9, 9, 3), 4 * i, np.uint8)).save(path)
    return tmp_path / "pictures"


def fine_tuned(folder, *overrides):
    size = ("--config.train.batch_size=8", "--config.eval.batch_size=8", "--config.init_from=x")
    overrides = (f"data.folder={folder}", *overrides)
    return read_config("configs/finetune.py:flatten_deit_t", [*SMALL[:4], *size, *(f"--config.{o}" for o in overrides)])


def test_a_folder_of_ones_own_pictures_tells_the_number_of_classes(folder):
    run = setup.prepare(fine_tuned(folder))
    assert run.config.model.num_classes == run.model.num_classes == 3
    assert (len(run.train_source), len(run.eval_source)) == (54, 6)
    assert run.notes()[0] == f"{folder} has no val/ or test/: 6 of 60 pictures are held out of training"
    with pytest.raises(ValueError, match=r"the train data has 3 classes and model\.num_classes=4: use --config"):
        setup.prepare(fine_tuned(folder, "model.num_classes=4"))


def test_splits_of_a_folder_are_those_that_are_there(folder):
    shutil.copytree(folder, folder / "train")
    for name in "abc":
        shutil.rmtree(folder / name)
    with pytest.raises(FileNotFoundError, match=r"no folder for split='vall', but \['train'\]"):
        setup.prepare(fine_tuned(folder, "data.eval_split=vall"))
    with pytest.raises(FileNotFoundError, match="no folder for split='trian'"):
        setup.prepare(fine_tuned(folder, "data.train_split=trian"))
    shutil.copytree(folder / "train", folder / "mine")
    run = setup.prepare(fine_tuned(folder, "data.eval_split=mine"))
    assert (len(run.train_source), len(run.eval_source)) == (60, 60), "nothing is held out where there is a set"


def test_a_picture_that_cannot_be_read_is_found_before_anything_compiles(folder):
    held_out = setup.prepare(fine_tuned(folder)).eval_source.path(0)
    damaged = next(path for path in sorted(folder.glob("*/*")) if str(path) != held_out)
    for path in (Path(held_out), damaged):
        path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(ValueError, match=f"1 of 6 pictures cannot be read:\n  image '{held_out}'") as error:
        setup.prepare(fine_tuned(folder))
    assert str(error.value).endswith("lists all"), "an evaluation leaves no picture out"
    Path(held_out).write_bytes((folder / "a/30.png").read_bytes())
    with pytest.raises(ValueError, match=f"1 of 54 pictures cannot be read:\n  image '{damaged}'") as error:
        setup.prepare(fine_tuned(folder))
    assert str(error.value).endswith("lists all; --config.data.on_corrupt=skip replaces them")
    setup.prepare(fine_tuned(folder, "data.on_corrupt=skip"))
