"""The command line, in real processes."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from .command import CACHE, ROOT, TINY, metrics, run

# Of a tracker: what it is told, in the folder that it is given.
STAND_IN = """
import json, pathlib
def init(dir, **options):
    global file
    file = pathlib.Path(dir) / "wandb.jsonl"
def write(entry):
    with file.open("a") as out:
        out.write(json.dumps(entry) + "\\n")
def log(values, step): write([step, values])
def finish(): write("finished")
"""


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run's folder, and what it printed."""
    folder, modules = tmp_path_factory.mktemp("finished"), tmp_path_factory.mktemp("modules")
    (modules / "wandb.py").write_text(STAND_IN)
    more = ("--profile=2-3", "--config.tracker.name=wandb")
    status, output = run(*TINY, *more, "--workdir", folder, PYTHONPATH=str(modules))
    assert status == 0, output
    return folder, output


def test_training_prints_its_progress_and_leaves_its_records(finished):
    folder, output = finished
    for part in ("images/s", "top-1", "on 64 images", "finished 12 steps", "--mode=eval"):
        assert part in output
    records = metrics(folder)
    assert [r["step"] for r in records if "train/loss" in r] == list(range(1, 13))
    assert [r["eval/count"] for r in records if "eval/acc1" in r] == [64, 64, 64]
    assert {"eval/acc5", "eval/loss"} <= records[-1].keys()
    assert json.loads((folder / "config.json").read_text())["model"]["name"] == "flatten_deit_t"
    assert list((folder / "tensorboard").iterdir())
    for file in ("curves.png", "classes.json"):
        assert (folder / file).stat().st_size


def test_steps_are_traced_and_a_tracker_is_told_the_same_numbers(finished):
    folder, output = finished
    assert f"steps 2 to 3 are traced: xprof --logdir={folder}/profile" in output
    assert len(list(folder.glob("profile/plugins/profile/*/*.xplane.pb"))) == 1
    *logged, last = (json.loads(line) for line in (folder / "wandb.jsonl").read_text().splitlines())
    assert [{"step": step, **values} for step, values in logged] == metrics(folder)
    assert last == "finished"


def test_help_is_no_error_and_leads_to_the_settings():
    done = subprocess.run([sys.executable, "main.py", "--help"], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    for part in ("--config.train.batch_size=256", "flatten-jax config configs/digits.py", "--workdir", "--mode"):
        assert part in done.stdout


@pytest.mark.slow
def test_the_printed_commands_work_as_they_are_printed(tmp_path):
    """Of a run on a folder of pictures, with overrides without which the config is of another model."""
    for i in range(24):
        pixels = np.random.default_rng(i).integers(0, 256, (20, 20, 3), np.uint8)
        (tmp_path / "my pictures" / "ab"[i % 2]).mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(tmp_path / "my pictures" / "ab"[i % 2] / f"{i}.png")
    data = ("--config.data.name=folder", f"--config.data.folder={tmp_path}/my pictures")
    short = ("--config.train.epochs=1", "--config.train.warmup_epochs=0.5")
    status, output = run(*TINY, *data, *short, "--workdir", tmp_path / "my run")
    assert status == 0, output
    assert "22 training and 2 test images of 2 classes" in output  # as many as the folder has
    assert "my pictures has no val/ or test/: 2 of 24 pictures are held out of training" in output
    evaluation = next(line for line in output.splitlines() if "step 1 (epoch 1.0)" in line).partition(": ")[2]
    commands = [line.strip() for line in output.partition("What to try next:\n")[2].splitlines()]
    commands = [command for command in commands if not command.startswith("tensorboard")]  # it would not end
    assert [command.split()[0] for command in commands] == ["python", "python", "flatten-jax", "flatten-jax"]
    bin = tmp_path / "bin"  # what an installation puts there, of this checkout and this Python
    bin.mkdir()
    for name, module in (("python", ""), ("flatten-jax", " -m flatten_jax.cli.main")):
        (bin / name).write_text(f'#!/bin/sh\nexec {sys.executable}{module} "$@"\n')
        (bin / name).chmod(0o755)
    environment = os.environ | CACHE | {"PATH": f"{bin}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    said = []
    for command in commands:
        done = subprocess.run(command, shell=True, cwd=ROOT, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, (command, done.stdout, done.stderr)
        said.append(done.stdout)
    assert evaluation in said[0]
    assert "fine-tuning: weights of" in said[1] and "finished 1 step (" in said[1]
    assert json.loads((tmp_path / "my run-2" / "config.json").read_text())["model"]["embed_dim"] == 16
    assert "curves.png" in said[2]
    assert "my pictures/" in said[3]


@pytest.mark.slow
def test_check_mode_does_all_but_the_training(tmp_path):
    status, output = run(*TINY, "--mode=check", "--workdir", tmp_path / "run")
    assert status == 0, output
    for part in (
        "compiled in",
        "the training step computes in",
        "a batch is read in",
        "a step takes",
        "12 steps and 3",
    ):
        assert part in output
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_finished_run_is_found_and_said(finished):
    folder, _ = finished
    status, output = run(*TINY, "--workdir", folder)
    assert status == 0
    assert "finished run of 12 steps" in output
    assert "compiles" not in output


@pytest.mark.slow
def test_evaluation_of_the_newest_and_of_a_named_checkpoint_repeats_the_runs_numbers(finished):
    folder, _ = finished
    evaluations = {r["step"]: r for r in metrics(folder) if "eval/acc1" in r}
    for arguments, step in ((["--workdir", folder], 12), (["--workdir=x", f"--checkpoint={folder}/checkpoints/8"], 8)):
        status, output = run(*TINY, "--mode=eval", *arguments)
        assert status == 0, output
        assert f"top-1 {evaluations[step]['eval/acc1']:.2f} %" in output
        assert f"loss {evaluations[step]['eval/loss']:.4f} on 64 images" in output


@pytest.mark.slow
def test_fine_tuning_from_another_run_says_what_it_loaded(finished, tmp_path):
    folder, _ = finished
    arguments = (*TINY, f"--config.init_from={folder}", "--config.model.num_classes=5", "--config.train.epochs=1")
    status, output = run(*arguments, "--config.init_new_head=True", "--workdir", tmp_path)
    assert status == 0, output
    assert "made new 2: head/bias, head/kernel" in output


MISTAKES = [
    (["--config.augment.mixupp=1"], "did you mean 'augment.mixup'?"),
    (["--config.train.accumulation=0"], "error: train.accumulation=0 must be a whole number, at least 1"),
    (["--cofnig=x"], "error: Unknown command line flag 'cofnig'. Did you mean: config"),
    (["--mode=evl"], "error: flag --mode=evl: value should be one of <train|eval|check>"),
    (["--profile=20-30"], "error: --profile=20-30 is not of this run, which has steps 1 to 12 before it"),
    (["--profile=3-1"], "error: --profile=3-1 must be the first and the last step to trace"),
    (["--profile=1-2", "--mode=check"], "error: --profile=1-2 is of the steps of a training, not of --mode=check"),
    (["--config.tracker.name=wandb"], "error: tracker.name='wandb' needs wandb, which is not installed: pip"),
    (["more"], "error: unexpected arguments more; overrides are written --config.x.y=value"),
    (["--config.train.epochs=many"], "epochs"),
    (["--config.model.name=flatten_deit_x"], "did you mean 'flatten_deit_"),
    (["--config.model.image_size=(48,40)"], "image_size=(48, 40) is not divisible by patch_size=16"),
    (["--config.train.batch_size=100"], "batch_size=100 gives no whole batch out of num_examples=64"),
    (["--config.train.accumulation=3"], "train.batch_size=16 is not divisible by train.accumulation=3"),
    (["--config.data.name=folder", "--config.data.folder=/nowhere"], "/nowhere does not exist"),
    (["--config.data.name=imagenet2012", "--config.data.data_dir=/nowhere"], "flatten-jax prepare imagenet2012"),
    (["--config.data.name=folder", "--config.data.folder=gs://b/c"], "data.folder=gs://b/c: data are not read"),
    (["--config.optimizer.learning_rate=1e30"], "is not finite: grad_norm="),
    (["--coordinator=127.0.0.1:9", "--num_processes=2"], "there is no --process_id: give all three or none"),
    (["--config.init_from=FINISHED", "--config.model.num_classes=5"], "head/kernel: (16, 10) given, (16, 5) expected"),
    (["--config.init_from=FINISHED", "--config.model.num_classes=5"], "init_new_head=True) makes a new head"),
    (["--config.optimizer.weight_decay=0.1", "--workdir=FINISHED"], "optimizer.weight_decay: 0.05 there, 0.1 now"),
]
# main.py with each of several lists of arguments, in a process of its own that does not import everything again.
EACH = """
import json, os, runpy, sys
from flatten_jax.training import agreement, loop, profile, setup
for i, arguments in enumerate(json.loads(sys.argv[1])):
    if not os.fork():
        for stream in (1, 2):
            os.dup2(os.open(f"{sys.argv[2]}/{i}", os.O_WRONLY | os.O_CREAT | os.O_APPEND), stream)
        sys.argv[:] = ["main.py", *arguments]
        runpy.run_path("main.py", run_name="__main__")
        sys.exit()
    print(os.waitstatus_to_exitcode(os.wait()[1]), flush=True)
"""


@pytest.mark.slow
def test_mistakes_end_with_one_clear_line(finished, tmp_path):
    given = [[a.replace("FINISHED", str(finished[0])) for a in arguments] for arguments, _ in MISTAKES]
    commands = [[*TINY, f"--workdir={tmp_path}/run{i}", *arguments] for i, arguments in enumerate(given)]
    code = [sys.executable, "-c", EACH, json.dumps(commands), str(tmp_path)]
    done = subprocess.run(code, cwd=ROOT, env=os.environ | CACHE, capture_output=True, text=True)
    assert done.stdout.split() == ["1"] * len(MISTAKES), done.stderr
    for i, (arguments, message) in enumerate(MISTAKES):
        output = (tmp_path / str(i)).read_text()
        assert message in output, arguments
        assert "Traceback" not in output, arguments
