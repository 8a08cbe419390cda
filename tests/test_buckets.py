"""Runs, weights and data in a bucket, gs://, against a server in memory."""

import importlib.util
import json
import signal
import time

import numpy as np
import pytest
from PIL import Image

import flatten_jax
from flatten_jax import paths
from flatten_jax.cli import config_file
from flatten_jax.cli.main import main
from flatten_jax.data import bucket as data_bucket
from flatten_jax.data import digits
from flatten_jax.data.sources import open_source
from flatten_jax.training import bucket_lock, loop, setup
from flatten_jax.training.bucket_lock import only_run_in_bucket
from flatten_jax.training.checkpoint import Checkpoints
from flatten_jax.training.integrity import DamagedCheckpointError
from flatten_jax.training.metrics import MetricsWriter
from flatten_jax.training.step import TrainState

from .bucket import bucket  # noqa: F401
from .command import TINY, assert_same_bits, metrics, run, start
from .runs import write_run


@pytest.fixture
def folder(bucket, request):  # noqa: F811
    """A folder of its own for each test."""
    return paths.path_of(f"{bucket}/{request.node.name}")


@pytest.fixture
def picture(tmp_path):
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 20, 3), np.uint8)).save(tmp_path / "picture.png")
    return tmp_path / "picture.png"


@pytest.mark.slow
def test_a_killed_run_goes_on_to_the_bits_of_an_unbroken_local_one(folder, tmp_path, picture, capsys):
    arguments = (*TINY, "--config.checkpoint.every_epochs=0.75", "--config.train.ema_decay=0.9")
    assert run(*arguments, "--workdir", tmp_path)[0] == 0
    process = start(*arguments, "--workdir", folder)
    while process.poll() is None and not (folder / "checkpoints" / "3" / "commit_success.txt").exists():
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "the run ended before it could be killed"
    assert len(list((folder / "lock").iterdir())) == 1, "the claim that it could not take back"
    status, output = run(*arguments, "--workdir", folder)
    assert status == 0, output
    assert "resuming at step " in output and f" of {folder}/checkpoints" in output
    assert_same_bits(folder, tmp_path)
    timeless = [
        [{k: v for k, v in r.items() if k != "perf/img_per_sec"} for r in metrics(f)] for f in (folder, tmp_path)
    ]
    assert timeless[0] == timeless[1]
    assert not (folder / "lock").exists()
    names = {file.name for file in folder.iterdir()}
    assert names == {"checkpoints", "classes.json", "config.json", "curves.png", "metrics.jsonl", "tensorboard"}
    assert len(list((folder / "tensorboard").iterdir())) == 2, "one of each process"

    said = output.partition("What to try next:\n")[2].splitlines()
    assert said[0].strip() == f"python main.py --workdir {folder} --mode=eval"
    assert config_file.check_arguments(said[0].split()[1:])[1].endswith(f"run_config.py:{folder}")
    result = loop.evaluate_checkpoint(setup.prepare(config_file.read_config(str(folder), [])), str(folder))
    assert result["eval/loss"] == pytest.approx(metrics(folder)[-1]["eval/loss"], rel=1e-5)
    (folder / "curves.png").unlink()
    main(said[2].split()[1:])
    assert (folder / "curves.png").read_bytes().startswith(b"\x89PNG")
    capsys.readouterr()
    main(["predict", "--from", str(folder), str(picture)])
    assert "picture.png" in capsys.readouterr().out


def test_a_shared_model_and_a_file_of_weights_are_read_from_a_bucket(folder, tmp_path, capsys):
    _, model, params = write_run(folder / "run", ["a", "b", "c"], {1: 70.0, 2: 50.0})
    main(["share", f"{folder}/run", f"{folder}/shared"])
    assert capsys.readouterr().out.count(str(folder)) == 3  # and no word of a local copy
    with pytest.raises(SystemExit, match=f"error: {folder}/shared holds model.safetensors, config.json, README.md"):
        main(["share", f"{folder}/run", f"{folder}/shared"])
    shared, variables = flatten_jax.from_pretrained(f"{folder}/shared")
    assert (shared.embed_dim, shared.num_classes) == (model.embed_dim, 3)
    for source in (f"{folder}/shared", f"{folder}/shared/model.safetensors", f"{folder}/run/checkpoints/1"):
        loaded = flatten_jax.load_weights(source, model)
        assert loaded.keys() == variables.keys()
        np.testing.assert_array_equal(loaded["params"]["head"]["kernel"], params[1]["head"]["kernel"])


def test_a_save_that_was_killed_is_no_step_and_damage_is_found(folder):
    _, _, params = write_run(folder, ["a", "b"], {1: None, 2: None})
    checkpoints = Checkpoints(folder / "checkpoints")
    for name in ("_CHECKPOINT_METADATA", "state/_METADATA", "position/metadata", "manifest/metadata"):
        text = (folder / "checkpoints" / "2" / name).read_text()
        (folder / "checkpoints" / "3" / name).write_text(text)  # of a step 3 that lacks its arrays and its last file
    assert (checkpoints.steps(), checkpoints.newest()) == ([1, 2], 2)
    checkpoints.save(TrainState(np.int32(3), params[1], {}, None, None), {"step": 3}, None)
    checkpoints.wait()
    assert checkpoints.newest() == 3
    assert {path.name for path in (folder / "checkpoints").iterdir()} == {"1", "2", "3"}
    checkpoints.add_evaluation(3, {"eval/acc1": 50.0})
    assert checkpoints.best() == (3, {"eval/acc1": 50.0})
    checkpoints.close()
    arrays = max(checkpoints.folder.glob("3/state/ocdbt.process_0/d/*"), key=lambda file: len(file.read_bytes()))
    content = bytearray(arrays.read_bytes())
    for i in range(len(content) // 4, 3 * len(content) // 4, 8):  # one bit alone may be of what nobody reads
        content[i] ^= 1
    arrays.write_bytes(bytes(content))
    with pytest.raises(DamagedCheckpointError, match="step 3"):
        checkpoints.restore_weights(3)
    assert Checkpoints(folder / "checkpoints").newest() == 2
    assert (folder / "checkpoints" / "3.damaged" / "state").exists()


def test_one_run_at_a_time_also_where_nothing_ends_with_its_process(folder, monkeypatch, caplog, capsys):
    monkeypatch.setattr(bucket_lock, "BEAT", 0.2)
    monkeypatch.setattr(bucket_lock, "PATIENCE", 1.5)
    monkeypatch.setattr(bucket_lock.lock, "PATIENCE", 0.4)
    with only_run_in_bucket(folder) as other:
        assert other == ""
        with only_run_in_bucket(folder) as second:
            assert second.startswith("process ") and " since " in second
    assert not (folder / "lock").exists()
    here = bucket_lock._identity(bucket_lock.os.getpid())
    for process in ([*here[:3], "0"], ["another machine", *here[1:]], None):
        (folder / "lock" / "x.json").write_text(json.dumps({"who": "the dead", "process": process, "beat": 7}))
        began = time.monotonic()
        with only_run_in_bucket(folder) as other:
            assert other == ""
            waited = time.monotonic() - began
            assert (waited > 1.5) == (process is None or process[0] != here[0])
            assert ("was claimed by the dead" in capsys.readouterr().err) == (waited > 1.5)
        assert not (folder / "lock").exists()
    assert "the claim of the dead was not renewed and is taken over" in caplog.text


def test_a_run_whose_claim_was_taken_over_ends(folder, monkeypatch, capsys):
    monkeypatch.setattr(bucket_lock, "BEAT", 0.05)
    ended = []
    monkeypatch.setattr(bucket_lock.os, "_exit", ended.append)
    with only_run_in_bucket(folder):
        end = time.monotonic() + 10
        while not ended and time.monotonic() < end:  # as the other run does with each renewal of its own claim
            for claim in (folder / "lock").iterdir() if (folder / "lock").exists() else ():
                claim.unlink(missing_ok=True)
    assert set(ended) == {1}
    assert f"another run took {folder}" in capsys.readouterr().err


def test_numbers_are_there_before_a_checkpoint_can_be(folder):
    writer = MetricsWriter(folder, 0)
    writer.write(1, {"train/loss": 3.0})
    assert not (folder / "metrics.jsonl").exists(), "an object is not rewritten for each line"
    writer.send()
    assert metrics(folder) == [{"step": 1, "train/loss": 3.0}]
    writer.write(2, {"train/loss": 2.0})
    writer.close()
    again = MetricsWriter(folder, 1)
    again.write(2, {"train/loss": 1.0})
    again.close()
    assert [r["train/loss"] for r in metrics(folder)] == [3.0, 1.0]


def test_data_of_a_bucket_are_copied_once(folder, tmp_path, monkeypatch, capsys):
    made = digits.build_once(tmp_path / "made")
    for file in made.iterdir():
        (folder / "digits" / "1.0.0" / file.name).write_bytes(file.read_bytes())
    capsys.readouterr()
    options = {"data_dir": str(folder), "cache_dir": str(tmp_path / "cache")}
    source = open_source("digits", "train", **options)
    assert len(source) == 1437
    ours = open_source("digits", "train", data_dir=tmp_path / "made")
    np.testing.assert_array_equal(source[5].image, ours[5].image)
    place = tmp_path / "cache" / str(folder).removeprefix("gs://") / "digits" / "1.0.0"
    count = len(list(made.iterdir()))
    assert f"copying {count} of {count} files (0.00 GiB) of {folder}/digits/1.0.0 to {place}" in capsys.readouterr().out
    assert len(open_source("digits", "eval", **options)) == 360
    assert capsys.readouterr().out == ""

    cut = next(place.glob("*train*"))  # an interrupted copy: one file is missing, one has another size
    cut.write_bytes(b"half")
    (place / "dataset_info.json").unlink()
    (place / ".features.json.part").write_text("half")
    assert len(open_source("digits", "train", **options)) == 1437
    assert f"copying 2 of {count} files" in capsys.readouterr().out
    assert {file.name for file in place.iterdir()} == {file.name for file in made.iterdir()}

    (place / "more").write_text("")
    with pytest.raises(ValueError, match=f"{place} is the copy of .*, which has no more .1 such files.: delete"):
        open_source("digits", "train", **options)
    (place / "more").unlink()
    cut.unlink()
    monkeypatch.setattr(data_bucket.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 1000}))
    with pytest.raises(OSError, match=r"GiB more in .*, where 0\.0 are free"):
        open_source("digits", "train", **options)
    with pytest.raises(FileNotFoundError, match=f"no data set cifar10: {folder} holds no version folder"):
        open_source("cifar10", "train", **options)


def test_pictures_of_a_bucket_are_copied_once(folder, tmp_path, picture):
    for split, name in (("train", "a"), ("train", "b"), ("val", "a"), ("val", "b")):
        (folder / split / name / "1.png").write_bytes(picture.read_bytes())
    with pytest.raises(
        ValueError, match=f"{folder}: data are not read from a bucket: .*--config.data.cache_dir=/local"
    ):
        open_source("folder", "train", folder=str(folder))
    source = open_source("folder", "train", folder=str(folder), cache_dir=tmp_path / "cache")
    assert (len(source), source.class_names) == (2, ("a", "b"))
    assert source[0].image == picture.read_bytes()
    with pytest.raises(FileNotFoundError, match="none holds no files"):
        open_source("folder", "train", folder=f"{folder}/none", cache_dir=tmp_path / "cache")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["curves", "gs://bucket/none"], "gs://bucket/none/metrics.jsonl is not there|gs://bucket/none is not there"),
        (["predict", "x.png", "--from", "gs://bucket/none"], "there is no gs://bucket/none: give a run's folder"),
        (["config", "gs://bucket/none"], "gs://bucket/none holds no config.json of a run"),
    ],
)
def test_what_is_not_in_a_bucket_is_said_in_one_line(bucket, arguments, said):  # noqa: F811
    with pytest.raises(SystemExit, match=f"error: .*({said})"):
        main(arguments)


def test_without_the_extra_the_way_out_is_said(monkeypatch):
    paths._connect.cache_clear()
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "gcsfs" else find(name, *a))
    with pytest.raises(SystemExit, match=r"runs=gs://... needs gcsfs, .*: pip install 'flatten_jax\[gcs\]'$"):
        main(["curves", "gs://bucket/run"])
