"""The runner: ordinary runs of main.py, each in its folder, whatever happens to some of them."""

import json
import os
import signal
import subprocess
import sys
import time

import jax.numpy as jnp
import numpy as np
import pytest

from flatten_jax.cli import compare as command
from flatten_jax.cli.config_file import read_config
from flatten_jax.compare import runner
from flatten_jax.compare.inside import inside
from flatten_jax.compare.presets import PRESETS, Preset, find
from flatten_jax.compare.runner import Case, Comparison, split
from flatten_jax.models import create_model, init
from flatten_jax.training import loop
from flatten_jax.training.lock import FolderInUseError, only_run_in

from ..command import CACHE, ROOT, TINY, assert_same_bits, metrics, run

RATES = (1e-3, 2e-3, 3e-3)
TOY = Preset(TINY[0].removeprefix("--config="), TINY[1:], RATES, 3.0, "a toy")


@pytest.fixture
def trained(monkeypatch):
    """Stand-ins for training and for what reads its folder: top-1 is 10 000 times the rate. Gives what was trained."""
    calls = []

    def train(run, folder):
        calls.append(folder.rpartition("/")[2])
        print("step 1")
        if run.config.model.attn_type == "hydra":
            raise loop.TrainingDiverged("step 3 is not finite: loss=nan. Nothing was saved")

    class Saved:
        def __init__(self, folder, read_only):
            self.rate = next(rate for rate in RATES if f"lr{rate:g}" in str(folder))

        def evaluation(self, step):
            assert step == 12
            return {
                "eval/acc1": 99.0,
                "eval/loss": 1.0,
                "eval_raw/acc1": min(1e4 * self.rate, 20),
                "eval_raw/loss": 2.0,
            }

    monkeypatch.setattr(loop, "train", train)
    monkeypatch.setattr(runner, "Checkpoints", Saved)
    monkeypatch.setattr(runner, "read_metrics", lambda _: [{"step": 1, "perf/img_per_sec": 5.0}, {"step": 1}])
    monkeypatch.setattr(runner, "_inside", lambda run, folder: [])
    monkeypatch.setattr(runner, "_multiply_adds", lambda _: 7)
    return calls


def test_failures_are_results_and_what_is_done_is_not_done_again(trained, tmp_path):
    said = []
    comparison = Comparison("toy", TOY, tmp_path, read_config, say=said.append)
    left = comparison.run(["linear", "hydra", "skipat"], seeds=1)
    assert left == 0 and trained[3:] == ["softmax-lr0.002-s0", "linear-lr0.002-s0", "hydra-lr0.002-s0"]
    found = {p.parent.name: json.loads(p.read_text()) for p in (tmp_path / "toy" / "runs").glob("*/result.json")}
    softmax = found["softmax-lr0.002-s0"]
    assert (softmax["status"], softmax["top1"], softmax["loss"]) == (
        "finished",
        20.0,
        2.0,
    )  # not the average's, not best
    assert softmax["images_per_second"] == 5.0 and softmax["parameters"] > 0 and softmax["made_on"]["jax"]
    hydra, skipat = found["hydra-lr0.002-s0"], found["skipat-lr0.002-s0"]
    assert (hydra["status"], hydra["said"]) == ("not finite", "step 3 is not finite: loss=nan")
    assert skipat["status"] == "does not fit" and "cannot be the first of a stage" in skipat["said"]
    assert (tmp_path / "toy/runs/softmax-lr0.002-s0/train.log").read_text() == "step 1\n"
    before = len(trained)
    assert Comparison("toy", TOY, tmp_path, read_config, say=said.append).run(["linear", "hydra"], seeds=1) == 0
    assert len(trained) == before
    with pytest.raises(ValueError, match=r"holds runs of another config:\n  train.epochs: 3.0 there, 2.0 now"):
        Comparison("toy", TOY, tmp_path, read_config, ["--config.train.epochs=2"])
    with pytest.raises(ValueError, match="is what the runs differ in: use --attentions"):
        Comparison("toy", TOY, tmp_path, read_config, ["--config.seed=2"])


def test_rates_are_searched_once_and_of_equal_ones_the_lower_wins(trained, tmp_path):
    comparison = Comparison("toy", TOY, tmp_path, read_config, say=lambda _: None)
    comparison.run(["linear"], seeds=1, hybrids=["last:1"], own_rates=True)
    searched = [name for name in trained if name.startswith("softmax")]
    assert searched == [f"softmax-lr{rate:g}-s0" for rate in RATES] + ["softmax-lr0.002-s0"]
    chosen = json.loads((tmp_path / "toy/rate_softmax.json").read_text())
    assert chosen["chosen"] == 2e-3 and [t["top1"] for t in chosen["tried"]] == [10.0, 20.0, 20.0]
    assert json.loads((tmp_path / "toy/rate_linear.json").read_text())["chosen"] == 2e-3
    assert "linear_last_1-lr0.002-s0" in trained
    assert (tmp_path / "toy/search/linear-lr0.001-s0/result.json").exists()


def test_runs_that_others_hold_are_left_to_them(trained, tmp_path, monkeypatch):
    said = []
    comparison = Comparison("toy", TOY, tmp_path, read_config, say=said.append)
    comparison.rate("softmax")
    with only_run_in(tmp_path / "toy/runs/linear-lr0.002-s0"):
        assert comparison.run(["linear", "efficient"], seeds=1) == 1
    assert "efficient-lr0.002-s0" in trained and "linear-lr0.002-s0" not in trained
    assert any(f"left to process {os.getpid()}" in line for line in said)

    def taken(run, folder):
        raise FolderInUseError(f"{folder} is in use by another")

    monkeypatch.setattr(loop, "train", taken)  # between the look and the training
    assert comparison.run(["linear"], seeds=1) == 1
    assert not (tmp_path / "toy/runs/linear-lr0.002-s0/result.json").exists()


def test_cases_are_arguments_of_main():
    case = Case("focused[use_dwc=False,focusing_factor=1]", 2, 0.064, "3:1")
    assert case.overrides(4) == [
        "--config.model.attn_type=focused,focused,focused,softmax",
        "--config.model.use_dwc=False",
        "--config.model.focusing_factor=1",
        "--config.seed=2",
        "--config.optimizer.learning_rate=0.064",
    ]
    assert case.folder == "focused_use_dwc=False_focusing_factor=1_3_1-lr0.064-s2"
    assert command._listed(["softmax,focused[use_dwc=False,kernel_size=3]", "linear"]) == [
        "softmax",
        "focused[use_dwc=False,kernel_size=3]",
        "linear",
    ]
    for wrong, said in (
        ("focussed", "did you mean 'focused'"),
        ("focused[use_dwx=1]", "focused has no option use_dwx; it has"),
        ("focused[use_dwc]", "must be a name, or name"),
    ):
        with pytest.raises(ValueError, match=said):
            split(wrong)
    assert "softmax*1+skipat" in runner.all_attentions() and "skipat" not in runner.all_attentions()


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_configs_of_main(name, monkeypatch):
    monkeypatch.chdir(ROOT)
    preset = PRESETS[name]
    for override in preset.overrides:
        key = override.removeprefix("--config.").partition("=")[0]
        assert key.partition(".")[0] in ("model", "data", "augment", "train", "optimizer", "eval", "checkpoint")
    config = read_config(preset.config, list(preset.overrides))
    assert len(preset.rates) == 3 and config.train.epochs > preset.search_epochs >= config.train.warmup_epochs
    assert config.optimizer.min_learning_rate < min(preset.rates)
    assert not config.train.ema_decay  # what is compared are the weights of the last step


def test_rates_of_the_arena_are_chosen_on_the_validation_split(trained, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    splits = {}

    def train(run, folder):
        splits[folder.rpartition("/lra-pathfinder/")[2]] = (run.config.data.eval_split, run.total_steps)

    monkeypatch.setattr(loop, "train", train)
    last = {"eval/acc1": 50.0, "eval/loss": 0.7}
    monkeypatch.setattr(
        runner, "Checkpoints", lambda folder, read_only: type("Saved", (), {"evaluation": lambda _, step: last})()
    )
    fewer = [f"--config.{key}" for key in ("data.examples=320", "train.batch_size=64", "eval.batch_size=16")]
    pathfinder = Comparison("lra-pathfinder", PRESETS["lra-pathfinder"], tmp_path, read_config, fewer, lambda _: None)
    assert pathfinder.entries == 4 and pathfinder.run(["softmax*1+skipat"], seeds=1) == 0
    assert splits == {
        **{f"search/softmax-lr{rate}-s0": ("validation", 40) for rate in ("0.0005", "0.001", "0.002")},
        **{f"runs/{name}-lr0.0005-s0": ("test", 800) for name in ("softmax", "softmax_1_skipat")},
    }


def test_a_preset_that_is_not_there():
    with pytest.raises(ValueError, match="did you mean 'cifar10-small'"):
        find("cifar-small")


def test_inside_of_a_softmax_that_takes_the_mean_and_of_a_block_without_attention():
    options = dict(image_size=8, patch_size=2, embed_dim=8, depth=2, num_heads=2, num_classes=2)
    model = create_model("flatten_deit_t", attn_type="softmax*1+skipat", **options)
    variables = init(model, seed=0)
    attention = variables["params"]["blocks_0"]["attn"]["qkv"]
    attention["kernel"] = jnp.zeros_like(attention["kernel"])  # all queries see all keys alike
    images = jnp.asarray(np.random.default_rng(0).normal(size=(2, 8, 8, 3)), jnp.float32)
    row, skipped = inside(model, variables, images)
    assert skipped == {"block": 1, "kind": "skipat", "said": "skipat takes nothing from other tokens there"}
    assert (row["kind"], row["keys"]) == ("softmax", 16)
    assert row["rank"] == pytest.approx(1) and row["focus"] == pytest.approx(1, abs=1e-5)
    assert row["entropy"] == pytest.approx(np.log(16), abs=1e-5) and row["uniform"] == pytest.approx(np.log(16))
    places = 2 * np.stack(np.meshgrid(range(4), range(4)), -1).reshape(-1, 2)
    apart = np.linalg.norm(places[:, None] - places, axis=-1).mean()
    assert row["distance"] == pytest.approx(apart, rel=1e-5)


@pytest.mark.slow
def test_the_runner_on_softmax_is_main_and_goes_on_after_it_was_killed(tmp_path):
    small = [f"--config.{k}" for k in ("model.embed_dim=12", "model.depth=1", "train.epochs=2", "log_every_steps=5")]
    small += ["--config.checkpoint.every_epochs=0.5", "--config.eval.every_epochs=1"]
    (tmp_path / "out/digits").mkdir(parents=True)
    chosen = {"attention": "softmax", "hybrid": "", "chosen": 0.064, "tried": []}
    (tmp_path / "out/digits/rate_softmax.json").write_text(json.dumps(chosen))
    arguments = ["compare", "run", "--preset", "digits", "--attentions", "softmax", "--seeds", "1", *small]
    start = [sys.executable, "-m", "flatten_jax.cli.main", *arguments, "--out", str(tmp_path / "out")]
    environment = os.environ | CACHE | {"PYTHONPATH": str(ROOT)}
    folder = tmp_path / "out/digits/runs/softmax-lr0.064-s0"

    process = subprocess.Popen(start, cwd=ROOT, env=environment, stderr=subprocess.DEVNULL)
    end = time.monotonic() + 600
    while process.poll() is None and time.monotonic() < end:
        if any(path.name.isdigit() for path in (folder / "checkpoints").glob("*")):  # of a save under way it is not
            break
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (folder / "result.json").exists()
    done = subprocess.run(start, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert "resuming at step" in (folder / "train.log").read_text()

    preset = PRESETS["digits"]
    status, output = run(
        f"--config={preset.config}",
        *preset.overrides,
        *small,
        *Case("softmax", 0, 0.064).overrides(1),
        "--workdir",
        tmp_path / "plain",
    )
    assert status == 0, output
    assert_same_bits(folder, tmp_path / "plain")
    last = metrics(tmp_path / "plain")[-1]
    assert json.loads((folder / "result.json").read_text())["top1"] == last["eval/acc1"]
    changed = json.loads((tmp_path / "out/digits/preset.json").read_text())["changed"]
    epochs = ["checkpoint.every_epochs=0.5", "eval.every_epochs=1.0"]
    assert changed == [*epochs, "log_every_steps=5", "model.depth=1", "model.embed_dim=12", "train.epochs=2.0"]
