"""The command line, in real processes."""

import json
import signal
import time

import pytest

from .command import TINY, assert_same_bits, metrics, run, start


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run's folder, and what it printed."""
    folder = tmp_path_factory.mktemp("finished")
    status, output = run(*TINY, "--workdir", folder)
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
def test_a_killed_run_goes_on_to_the_bits_of_an_unbroken_one(finished, tmp_path):
    """SIGKILL after a checkpoint in the middle of an epoch; four steps are an epoch, three a checkpoint."""
    unbroken, broken = tmp_path / "unbroken", tmp_path / "broken"
    arguments = (*TINY, "--config.checkpoint.every_epochs=0.75", "--config.train.ema_decay=0.9")
    assert run(*arguments, "--workdir", unbroken)[0] == 0
    process = start(*arguments, "--workdir", broken)
    while process.poll() is None and not (broken / "checkpoints" / "3" / "commit_success.txt").exists():
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "the run ended before it could be killed"
    status, output = run(*arguments, "--workdir", broken)
    assert status == 0, output
    assert "resuming at step" in output
    assert_same_bits(broken, unbroken)
    timeless = [
        [{k: v for k, v in r.items() if k != "perf/img_per_sec"} for r in metrics(f)] for f in (broken, unbroken)
    ]
    assert timeless[0] == timeless[1]


@pytest.mark.slow
def test_fine_tuning_from_another_run_says_what_it_loaded(finished, tmp_path):
    folder, _ = finished
    arguments = (*TINY, f"--config.init_from={folder}", "--config.model.num_classes=5", "--config.train.epochs=1")
    status, output = run(*arguments, "--workdir", tmp_path / "refused")
    assert status == 1
    assert "head/kernel: (16, 10) given, (16, 5) expected" in output
    assert "init_new_head" in output
    status, output = run(*arguments, "--config.init_new_head=True", "--workdir", tmp_path / "new")
    assert status == 0, output
    assert "made new 2: head/bias, head/kernel" in output


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config.augment.mixupp=1"], 'Did you mean "mixup"'),
        (["--config.train.epochs=many"], "epochs"),
        (["--config.model.name=flatten_deit_x"], "did you mean 'flatten_deit_"),
        (["--config.model.image_size=(48,40)"], "image_size=(48, 40) is not divisible by patch_size=16"),
        (["--config.train.batch_size=100"], "batch_size=100 gives no whole batch out of num_examples=64"),
        (["--config.train.accumulation=3"], "train.batch_size=16 is not divisible by train.accumulation=3"),
        (["--config.data.name=folder", "--config.data.folder=/nowhere"], "/nowhere does not exist"),
        (["--config.data.name=imagenet2012", "--config.data.data_dir=/nowhere"], "flatten-jax prepare imagenet2012"),
        (["--config.optimizer.learning_rate=1e30"], "is not finite: grad_norm="),
    ],
)
def test_mistakes_end_with_one_clear_line(tmp_path, arguments, message):
    status, output = run(*TINY, *arguments, "--workdir", tmp_path)
    assert status == 1
    assert message in output
    assert "Traceback" not in output


@pytest.mark.slow
def test_a_folder_with_a_run_of_another_config_is_refused(finished):
    status, output = run(*TINY, "--config.optimizer.weight_decay=0.1", "--workdir", finished[0])
    assert status == 1
    assert "optimizer.weight_decay: 0.05 there, 0.1 now" in output
