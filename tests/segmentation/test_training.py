"""A segmenter in the training loop: started from a classifier, killed and resumed, evaluated."""

import json
import re
import signal
import time

import jax
import numpy as np
import pytest

from configs.recipes import dense
from flatten_jax.models import create_model, init
from flatten_jax.training import loop, setup
from flatten_jax.training.checkpoint import save_weights
from flatten_jax.weights.convert import flat

from ..command import assert_same_bits, metrics, run, start

TINY = (
    "--config.model.image_size=(32,32)",
    "--config.model.embed_dims=(8,16,24,32)",
    "--config.model.num_heads=(1,1,1,1)",
    "--config.segmentation.channels=8",
    "--config.segmentation.resize=(32,64)",
    "--config.data.name=synthetic",
    "--config.data.examples=40",
    "--config.train.batch_size=8",
    "--config.eval.batch_size=8",
    "--config.train.epochs=2",
)


def config_of(*overrides):
    from flatten_jax.cli.config_file import read_config

    return read_config("configs/mosaic.py", [*TINY, "--config.model.num_classes=10", *overrides])


def test_a_run_starts_from_a_classifiers_weights(tmp_path):
    """What is the backbone's is taken, position tables fitted to another image size; the head is new."""
    config = config_of()
    options = {k: v for k, v in config.model.items() if v is not None and k not in ("image_size", "num_classes")}
    classifier = create_model(**options, image_size=(64, 64), num_classes=7)
    before = init(classifier, seed=5)
    config.init_from = str(save_weights(tmp_path / "classifier", before))
    state, said = loop._first_state(setup.prepare(config))
    ours = flat({"params": jax.device_get(state.params["backbone"])}, np.asarray)
    theirs = flat(before, np.asarray)
    same = [name for name in ours if ours[name].shape == theirs[name].shape]
    for name in same:
        np.testing.assert_array_equal(ours[name], theirs[name])
    assert {name.split("/")[-1] for name in ours if name not in same} == {f"pos_embed{i}" for i in (1, 2, 3, 4)}
    assert "fine-tuning: weights of" in said and "resampled" in said
    assert re.search("made new.*decode_head", said, re.DOTALL)


@pytest.mark.slow
def test_a_killed_run_goes_on_to_the_same_bits_and_is_evaluated(tmp_path):
    command = (
        "--config=configs/mosaic.py",
        *TINY,
        "--config.checkpoint.every_epochs=0.2",
        "--config.eval.every_epochs=1.0",
        "--config.log_every_steps=1",
        "--config.data.workers=1",
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
    status, output = run("--workdir", broken, "--mode=eval")
    assert status == 0, output
    last = next(line for line in reversed(metrics(broken)) if "eval/miou" in line)
    assert f"mIoU {last['eval/miou']:.2f} %" in output and "IoU in percent:" in output
    assert len(re.findall(r"^  stripes\d +([\d.]+|nowhere)$", output, re.MULTILINE)) == 10
    saved = json.loads((broken / "config.json").read_text())
    assert (saved["segmentation"]["head"], saved["model"]["num_classes"]) == ("upernet", 10)


@pytest.mark.slow
@pytest.mark.parametrize("file", ["ade20k_semfpn_flatten_pvt_t", "ade20k_upernet_flatten_swin_t"])
def test_the_smoke_of_the_published_configs_trains(file, tmp_path):
    """Of their models in small; shapes of the large ones are traced by tests/segmentation/test_heads.py."""
    import importlib

    config = dense.variant(importlib.import_module(f"configs.{file}").get_config(), "smoke")
    config.train.epochs = 1.0
    config.model.update(embed_dims=(8, 16, 24, 32) if "pvt" in file else None)
    if "swin" in file:
        config.model.update(embed_dim=8, num_heads=(1, 1, 1, 1))
    loop.train(setup.prepare(config), str(tmp_path))
    assert metrics(tmp_path)[-1]["eval/miou"] >= 0
