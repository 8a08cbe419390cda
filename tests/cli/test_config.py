"""`flatten-jax config`, and config files that cannot be read."""

import json
import re

import pytest

from configs import digits
from flatten_jax.attention import ATTENTIONS, attention_options
from flatten_jax.cli.config_file import check_arguments, read_config
from flatten_jax.cli.main import main
from flatten_jax.training import agreement, run_config
from flatten_jax.training.settings import SETTINGS, checked, flat

from ..command import ROOT


@pytest.fixture(autouse=True)
def where_configs_are(monkeypatch):
    monkeypatch.chdir(ROOT)


@pytest.fixture
def run(tmp_path):
    """A run's folder with its config, which has overrides."""
    config = checked(read_config("configs/digits.py", ["--config.model.depth=2", "--config.seed=7"]))
    agreement.claim(tmp_path / "run", config, "0123456789")
    return tmp_path / "run"


def test_every_setting_is_shown_with_type_value_range_and_meaning(capsys):
    main(["config", "configs/flatten_swin_t.py", "--config.train.epochs=0.5"])
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 120
    shown = dict(re.findall(r"^([a-z_0-9.]+) = (.+?)  ", out, re.MULTILINE))
    wanted = {*SETTINGS, *(f"model.{o}" for a in ATTENTIONS for o in attention_options(a))}
    assert wanted | {"model.depths", "model.window_size", "model.remat"} <= shown.keys()
    assert shown["train.epochs"] == "0.5"
    text = " ".join(out.split())
    for line in (
        "train.epochs = 0.5 a number, above 0 and finite: of training; a fraction of one is fine",
        "data.on_corrupt = 'fail' one of fail, skip:",
        "one of float32, bfloat16, float16: of the computation, or short f32, bf16, f16; parameters are float32",
        "model.depths = - a tuple, by default (2, 2, 6, 2): the architecture",
        "model.kernel_size = - a whole number, by default 5: focused: k of the depthwise convolution, odd; polaformer:",
    ):
        assert line in text


def test_a_part_of_the_names_is_enough(capsys):
    main(["config", "configs/digits.py", "learning_rate"])
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines() if " = " in line] == [
        "linearize.align_learning_rate",
        *("optimizer.learning_rate", "optimizer.min_learning_rate", "optimizer.warmup_learning_rate"),
    ]
    with pytest.raises(SystemExit, match=r"no setting of configs/digits\.py has 'colour' in its name"):
        main(["config", "configs/digits.py", "colour"])


def test_every_option_of_a_model_has_a_line_about_it():
    from flatten_jax.cli.config import model_docs
    from flatten_jax.models.registry import MODELS

    own = {option: said for name in MODELS for option, said in model_docs(name)[0].items()}
    without = {option for option, (_, meaning) in own.items() if meaning == "of the architecture"}
    assert not without, "add them to the Attributes of their class"


def test_a_runs_folder_is_a_config(run, capsys):
    main(["config", str(run), "seed"])
    assert capsys.readouterr().out.startswith("seed = 7 ")
    for path in (run, run / "config.json", run / "checkpoints" / "12"):
        config = read_config(str(path), ["--config.train.epochs=1.5", "--config.train.warmup_epochs=0"])
        assert (config.model.depth, config.seed, config.train.epochs) == (2, 7, 1.5)


def test_a_runs_config_is_the_one_it_was_started_with(run):
    config = checked(read_config("configs/digits.py", ["--config.model.depth=2", "--config.seed=7"]))
    again = checked(run_config.get_config(str(run)))
    assert flat(json.loads(again.to_json())) == flat(json.loads(config.to_json()))


def test_an_old_runs_config_takes_todays_overrides(tmp_path):
    """Durations were whole numbers, and most options of attentions were not there."""
    old = json.loads(digits.get_config().to_json())
    old["model"] = {k: v for k, v in old["model"].items() if v is not None}
    old["train"].update(epochs=20, warmup_epochs=2, cooldown_epochs=0)
    (tmp_path / "config.json").write_text(json.dumps(old))
    overrides = ["--config.train.epochs=2.5", "--config.model.attn_type=rala", "--config.model.image_size=(8,8)"]
    config = checked(read_config(str(tmp_path), overrides))
    assert (config.train.epochs, config.model.attn_type, config.model.image_size) == (2.5, "rala", (8, 8))


@pytest.mark.parametrize(
    ("arguments", "own"),
    [
        (["--workdir={run}"], True),
        (["--workdir", "{run}", "--mode=eval"], True),
        (["--config=configs/digits.py", "--workdir={run}", "--mode=eval"], True),
        (["--config", "configs/digits.py", "--workdir=x", "--mode", "eval", "--checkpoint={run}/checkpoints/3"], True),
        (["--workdir=x", "--config.init_from={run}"], True),
        (["--config=configs/digits.py", "--workdir={run}"], False),
        (["--config=configs/digits.py", "--workdir=x", "--mode=eval", "--checkpoint=x.safetensors"], False),
    ],
)
def test_the_config_of_a_run_is_taken_where_it_is_meant(run, arguments, own):
    argv = check_arguments(["main.py", *(argument.format(run=run) for argument in arguments)])
    given = [argument for argument in argv if argument.startswith("--config=")]
    assert len(given) == 1 and "--config" not in argv
    assert given[0].startswith(f"--config={run_config.__file__}:{run}" if own else "--config=configs/digits.py")


def test_fine_tuning_forgets_where_the_run_was_from(run):
    saved = json.loads((run / "config.json").read_text()) | {"init_from": "weights.pth", "init_new_head": True}
    (run / "config.json").write_text(json.dumps(saved))
    assert run_config.get_config(str(run)).init_new_head
    config = run_config.get_config(f"{run},anew")
    assert (config.init_from, config.init_new_head) == ("", False)


FILES = {
    "syntax.py": ("def get_config(:", "cannot be read (SyntaxError: "),
    "fails.py": ("import math\n\ndef get_config():\n    return math.nope", "AttributeError: .*, line 4"),
    "refuses.py": ("def get_config():\n    raise ValueError('no such thing')", "refuses.py: no such thing"),
    "none.py": ("def get_config():\n    pass", "gives NoneType, not a ConfigDict"),
    "empty.py": ("", "has no attribute 'get_config'"),
}


@pytest.mark.parametrize("name", FILES)
def test_a_config_file_that_fails_is_one_line(tmp_path, name):
    text, said = FILES[name]
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=said.replace("(", r"\(")) as error:
        read_config(str(tmp_path / name), [])
    assert name in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "which config? There is no --config=configs/NAME.py"),
        (["--workdir=/nowhere"], "and /nowhere holds no run whose config could be taken"),
        (
            ["--config=configs/flaten_pvt_t.py"],
            "flaten_pvt_t.py is not there; did you mean configs/flatten_pvt_t.py?",
        ),
        (["--config=digit"], "--config=digit: digit is not there; did you mean configs/digits.py?"),
        (["--config=configs/digits"], "did you mean configs/digits.py?"),
        (["--config=nowhere/x.py"], "nowhere/x.py is not there; there are configs/ade20k_semfpn_flatten_pvt_t.py, "),
        (["--config=configs/published.py:flaten_pvt_t"], "did you mean 'flatten_pvt_t'?"),
        (["--config=configs/digits.py:tiny"], "unknown variant 'tiny'"),
        (
            ["--config=configs/digits.py", "--workdir=hdfs://bucket/run"],
            "--workdir=hdfs://bucket/run: of addresses only gs:// is",
        ),
        (["--config=configs/digits.py", "--workdir=x", "--checkpoint=s3://b/run"], "--checkpoint=s3://b/run: of "),
        (["--config=s3://bucket/run"], "s3://bucket/run: of addresses only gs:// is read and written"),
        (["--config=configs/digits.py", "--workdir=README.md"], "--workdir=README.md is a file"),
    ],
)
def test_what_is_missing_is_one_line(arguments, said):
    with pytest.raises(ValueError) as error:
        check_arguments(["main.py", *arguments])
    assert said in str(error.value) and "\n" not in str(error.value)


def test_a_setting_without_its_prefix_is_understood():
    for flag, meant in (
        ("train.epochs", "train.epochs"),
        ("batch_size", "batch_size"),
        ("learning_rat", "learning_rate"),
    ):
        with pytest.raises(
            ValueError, match=rf"Unknown command line flag '{flag}'; did you mean '--config\.\S*{meant}'"
        ):
            read_config("configs/digits.py", [f"--{flag}=3"])
