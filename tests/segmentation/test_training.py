"""A segmenter in the training loop: started from a classifier, killed and resumed, evaluated."""

import json
import re
import signal
import time

import jax
import numpy as np
import pytest
from PIL import Image

from flatten_jax.cli.config_file import read_config
from flatten_jax.models import create_model, init
from flatten_jax.training import loop, setup
from flatten_jax.training.checkpoint import save_weights
from flatten_jax.weights.convert import flat

from ..command import assert_same_bits, metrics, run, start

TINY = (
    "--config.model.image_size=(32,32)",
    "--config.model.embed_dims=(8,16,24,32)",
    "--config.model.num_heads=(1,1,1,1)",
    "--config.model.out_indices=(0,1)",  # half the model, in half the time
    "--config.segmentation.channels=8",
    "--config.data.name=synthetic",
    "--config.data.examples=40",
    "--config.train.batch_size=8",
    "--config.eval.batch_size=8",
    "--config.train.epochs=2",
)


def config_of(*overrides):
    return read_config("configs/mosaic.py", [*TINY, "--config.model.num_classes=10", *overrides])


def test_a_run_starts_from_a_classifiers_weights(tmp_path):
    """What is the backbone's is taken, position tables fitted to another image size; the head is new."""
    config = config_of()
    options = {
        k: v for k, v in config.model.items() if v is not None and k not in ("image_size", "num_classes", "out_indices")
    }
    classifier = create_model(**options, image_size=(64, 64), num_classes=7)
    before = init(classifier, seed=5)
    config.init_from = str(save_weights(tmp_path / "classifier", before))
    state, said = loop._first_state(setup.prepare(config))
    ours = flat({"params": jax.device_get(state.params["backbone"])}, np.asarray)
    theirs = flat(before, np.asarray)
    same = [name for name in ours if ours[name].shape == theirs[name].shape]
    for name in same:
        np.testing.assert_array_equal(ours[name], theirs[name])
    assert {name.split("/")[-1] for name in ours if name not in same} == {"pos_embed1", "pos_embed2"}
    assert "fine-tuning: weights of" in said and "resampled" in said
    assert re.search("made new.*decode_head", said, re.DOTALL)


@pytest.mark.slow
def test_a_killed_run_goes_on_to_the_same_bits_and_is_evaluated(tmp_path, capsys):
    command = (
        "--config=configs/mosaic.py",
        *TINY,
        "--config.checkpoint.every_epochs=0.2",
        "--config.eval.every_epochs=1.0",
        "--config.log_every_steps=1",
    )
    unbroken, broken = tmp_path / "unbroken", tmp_path / "broken"
    status, output = run(*command, "--workdir", unbroken)
    assert status == 0, output
    assert "all 10 classes" in output and re.search(r"best: step \d+, mIoU", output)
    process = start(*command, "--workdir", broken)
    folder, deadline = broken / "checkpoints", time.monotonic() + 250
    while not list(folder.glob("[4-9]")) and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    printed, _ = process.communicate()
    assert process.returncode == -signal.SIGKILL, printed
    status, output = run(*command, "--workdir", broken)
    assert status == 0, output
    assert re.search(r"resuming at step [4-9] of", output), output
    assert_same_bits(broken, unbroken)
    timeless = [
        [{k: v for k, v in line.items() if k != "perf/img_per_sec"} for line in metrics(f)] for f in (broken, unbroken)
    ]
    assert timeless[0] == timeless[1]
    last = next(line for line in reversed(metrics(broken)) if "eval/miou" in line)
    result = loop.evaluate_checkpoint(setup.prepare(read_config(str(broken), [])), str(broken))
    assert result["eval/miou"] == pytest.approx(last["eval/miou"], abs=0.5)  # on other devices
    output = capsys.readouterr().out
    assert f"mIoU {result['eval/miou']:.2f} %" in output and "IoU in percent:" in output
    assert len(re.findall(r"^  stripes\d +([\d.]+|nowhere)$", output, re.MULTILINE)) == 10
    saved = json.loads((broken / "config.json").read_text())
    assert (saved["segmentation"]["head"], saved["model"]["num_classes"]) == ("upernet", 10)


@pytest.mark.slow
def test_pictures_of_several_sizes_are_evaluated_whole_with_tables_resampled(tmp_path):
    """PVT's position tables belong to a size, and the masks of the folder are of two others."""
    rng = np.random.default_rng(0)
    for split, sizes in (("training", [(32, 40)] * 8), ("validation", [(32, 64), (48, 32)])):
        for i, size in enumerate(sizes):
            for kind, pixels, ending in (
                ("images", rng.integers(0, 256, (*size, 3), np.uint8), "jpg"),
                ("annotations", rng.integers(0, 3, size).astype(np.uint8), "png"),
            ):
                path = tmp_path / "set" / kind / split / f"{i}.{ending}"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels).save(path)
    config = config_of("--config.segmentation.mosaic=none")
    config.segmentation.resize = (32, 64)
    config.data.update(name="folder", folder=str(tmp_path / "set"), examples=0)
    config.model.num_classes = 3
    run = setup.prepare(config)
    assert [shape.window for shape in run.masks.shapes] == [(32, 64), (64, 32)]
    state, _ = loop._first_state(run)
    result = loop.evaluate_weights(run, state.variables)
    assert result["eval/count"] == 2 and 0 < result["eval/aacc"] < 100
