import logging
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from flatten_jax.data import pipeline
from flatten_jax.data.augment import CorruptImageError
from flatten_jax.data.pipeline import eval_batches, steps_per_epoch, train_batches
from flatten_jax.data.source import Example, Source


class Numbered(Source):
    """Example i is a picture of colour (i % 256, i // 256, 0) with label i; those in `corrupt` are no pictures."""

    class_names = ()

    def __init__(self, length, corrupt=()):
        self.length, self.corrupt = length, corrupt

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        if index in self.corrupt:
            return Example(b"no picture", index, f"bad{index}.jpg")
        return Example(np.full((4, 4, 3), (index % 256, index // 256, 0), np.uint8), index, f"{index}.jpg")


def draw(image, rng):
    """Stands in for the augmentation: keeps the example's number in two channels, a random number in the third."""
    pixels = np.array(image)[:2, :2]
    pixels[..., 2] = rng.integers(256)
    return pixels


def plain(image):
    return np.asarray(image)[:2, :3]


def backends(image, rng):
    from jax._src import xla_bridge

    return np.full((1, 1, 3), len(xla_bridge._backends), np.uint8)


def broken(image, rng):
    if np.asarray(image)[0, 0, 0] == 3:
        raise ZeroDivisionError("an operation failed")
    return draw(image, rng)


def train(source=None, transform=draw, *, batch_size=4, seed=7, start_step=0, stop_step=6, **options):
    source = source or Numbered(13)
    return train_batches(
        source, transform, batch_size=batch_size, seed=seed, start_step=start_step, stop_step=stop_step, **options
    )


def assert_equal(batches, expected):
    batches, expected = list(batches), list(expected)
    assert len(batches) == len(expected) > 0
    for batch, other in zip(batches, expected, strict=True):
        assert batch.keys() == other.keys()
        for key in batch:
            assert type(batch[key]) is np.ndarray
            assert batch[key].dtype == other[key].dtype
            np.testing.assert_array_equal(batch[key], other[key])


def labels(batches):
    return np.concatenate([batch["label"] for batch in batches])


def workers():
    return [child.pid for child in multiprocessing.active_children()]


def runs(pid):
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False


def wait_until(condition, seconds=20):
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.05)
    return condition()


def test_a_training_batch():
    batch = next(train(process_index=1, process_count=2))
    assert {key: (value.shape, value.dtype) for key, value in batch.items()} == {
        "image": ((2, 2, 2, 3), np.uint8),
        "label": ((2,), np.int32),
        "skipped": ((2,), np.int32),
    }
    np.testing.assert_array_equal(batch["image"][:, 0, 0, 0], batch["label"])


def test_an_epoch_is_a_permutation_keyed_by_seed_and_epoch():
    epochs = labels(train(Numbered(300), batch_size=100, stop_step=9)).reshape(3, 300)
    for epoch in epochs:
        assert sorted(epoch) == list(range(300))
    orders = [*epochs, labels(train(Numbered(300), batch_size=100, stop_step=3, seed=8))]
    for i, order in enumerate(orders):
        # Two unrelated permutations agree in one place on average.
        assert all((order == other).sum() < 10 for other in [np.arange(300), *orders[:i]])


def test_the_examples_that_an_epoch_drops_differ_between_epochs():
    dropped = [set(range(13)) - set(labels(train(start_step=3 * e, stop_step=3 * e + 3))) for e in range(20)]
    assert all(len(rest) == 1 for rest in dropped)
    assert len(set.union(*dropped)) > 5


def test_random_numbers_belong_to_example_and_epoch():
    def drawn(batch_size, seed=7):
        batches = list(train(Numbered(256), batch_size=batch_size, stop_step=512 // batch_size, seed=seed))
        table = np.zeros((2, 256), int)
        for step, batch in enumerate(batches):
            table[step * batch_size // 256, batch["label"]] = batch["image"][:, 0, 0, 2]
        return table

    numbers = drawn(32)
    np.testing.assert_array_equal(numbers, drawn(128))
    assert (numbers[0] == numbers[1]).mean() < 0.1  # an example has new ones in the next epoch
    assert (numbers == drawn(32, seed=8)).mean() < 0.1
    assert len(set(numbers[0])) > 128  # and another example has others


def test_repetitions_stand_together_with_numbers_of_their_own():
    """Three of each, in the order of an epoch without them, of which they take the first third."""
    source, options = Numbered(300), dict(batch_size=100, stop_step=6)
    once, thrice = list(train(source, **options)), list(train(source, **options, repeats=3))
    first = np.split(labels(once), 2)
    for epoch, order in enumerate(np.split(labels(thrice), 2)):
        np.testing.assert_array_equal(order, np.repeat(first[epoch][:100], 3))
    drawn = np.concatenate([batch["image"][:, 0, 0, 2] for batch in thrice]).reshape(200, 3)
    assert all((drawn[:, i] == drawn[:, j]).mean() < 0.1 for i, j in ((0, 1), (0, 2), (1, 2)))
    # The first of the three is as it was without repetitions.
    alone = np.concatenate([batch["image"][:, 0, 0, 2] for batch in once])
    np.testing.assert_array_equal(drawn[:100, 0], alone[:100])


def test_repetitions_resume_within_a_picture_and_are_the_same_for_all_processes():
    whole = list(train(repeats=3))  # batches of 4, so that a step ends within the three of a picture
    assert_equal(train(repeats=3, start_step=4), whole[4:])
    parts = [list(train(repeats=3, process_index=i, process_count=2)) for i in range(2)]
    for step, (left, right) in zip(whole, zip(*parts, strict=True), strict=True):
        np.testing.assert_array_equal(step["image"], np.concatenate([left["image"], right["image"]]))
    alone = pipeline.train_batch(Numbered(13), draw, batch_size=4, seed=7, step=4, repeats=3)
    np.testing.assert_array_equal(alone["image"], whole[4]["image"])


@pytest.mark.parametrize("process_count", [2, 4])
def test_processes_take_slices_of_the_global_batch(process_count):
    parts = [list(train(process_index=i, process_count=process_count)) for i in range(process_count)]
    joined = [
        {key: np.concatenate([part[key] for part in step]) for key in step[0]} for step in zip(*parts, strict=True)
    ]
    assert_equal(joined, train())


@pytest.mark.parametrize("start_step", [1, 3, 4])  # 3 steps are an epoch: mid-epoch, at its end, in the next one
def test_a_run_resumes_at_any_step(start_step):
    assert_equal(train(start_step=start_step), list(train())[start_step:])


def test_workers_change_nothing_and_skip_the_same():
    source = Numbered(13, corrupt=(2, 5))
    alone = list(train(source, on_corrupt="skip"))
    assert_equal(train(source, on_corrupt="skip", workers=2), alone)
    assert sum(batch["skipped"].sum() for batch in alone) > 0
    assert wait_until(lambda: not list_shared_memory())


def test_fewer_batches_than_workers():
    assert_equal(
        eval_batches(Numbered(3), plain, batch_size=4, workers=2), eval_batches(Numbered(3), plain, batch_size=4)
    )


def test_a_skipped_picture_is_replaced_counted_and_named_once(caplog):
    with caplog.at_level(logging.WARNING):
        batches = list(train(Numbered(12, corrupt=(2, 5)), on_corrupt="skip", stop_step=9))
    whole = list(train(Numbered(12), stop_step=9))
    assert [batch["skipped"].sum() for batch in batches] != [0] * 9
    for batch, expected in zip(batches, whole, strict=True):
        wanted = np.isin(expected["label"], (2, 5))
        np.testing.assert_array_equal(batch["skipped"], wanted)
        np.testing.assert_array_equal(batch["label"][~wanted], expected["label"][~wanted])
        np.testing.assert_array_equal(batch["image"][~wanted], expected["image"][~wanted])
        assert not np.isin(batch["label"], (2, 5)).any()
        np.testing.assert_array_equal(batch["image"][:, 0, 0, 0], batch["label"])
    warnings = [record.getMessage() for record in caplog.records]
    assert len(warnings) == 2 and all(any(f"bad{i}.jpg" in line for line in warnings) for i in (2, 5))


def test_skipping_ends_when_nothing_is_left():
    with pytest.raises(ValueError, match=r"100 pictures in a row are corrupt; the last: .*bad\d+\.jpg"):
        next(train(Numbered(8, corrupt=range(8)), on_corrupt="skip"))


@pytest.mark.parametrize("workers", [0, 1])
def test_a_corrupt_picture_fails_by_name(workers):
    with pytest.raises(CorruptImageError, match=r"bad3\.jpg"):
        list(train(Numbered(13, corrupt=(3,)), workers=workers))


def test_a_corrupt_picture_always_fails_in_evaluation():
    with pytest.raises(CorruptImageError, match=r"bad6\.jpg"):
        list(eval_batches(Numbered(7, corrupt=(6,)), plain, batch_size=4))


def test_real_files_fail_or_pass_by_their_content(tmp_path, picture):
    from flatten_jax.data.sources import open_source

    (tmp_path / "train/ant").mkdir(parents=True)
    for name, content in {
        "cmyk.jpg": picture(0, "JPEG", "CMYK"),
        "gray.jpg": picture(1, "JPEG", "L"),
        "png.JPEG": picture(2, "PNG", "RGBA"),
        "rgb.jpg": picture(3),
    }.items():
        (tmp_path / "train/ant" / name).write_bytes(content)
    (tmp_path / "val/ant").mkdir(parents=True)  # or a tenth would be held out
    (batch,) = train(open_source("folder", "train", folder=tmp_path), stop_step=1)
    assert batch["image"].shape == (4, 2, 2, 3)
    for name, content in (("cut.jpg", picture(4)[:-200]), ("text.jpg", b"<html>not found</html>")):
        (tmp_path / "train/ant" / name).write_bytes(content)
        with pytest.raises(CorruptImageError, match=f"train/ant/{name}"):
            list(train(open_source("folder", "train", folder=tmp_path), batch_size=5, stop_step=2))
        (tmp_path / "train/ant" / name).unlink()


def test_an_error_in_a_worker_names_the_picture():
    with pytest.raises(ZeroDivisionError, match="an operation failed") as error:
        list(train(transform=broken, workers=1))
    assert any("3.jpg" in note for note in error.value.__notes__)


@pytest.mark.parametrize(
    ("size", "batch_size", "process_count"),
    [(8, 4, 1), (9, 4, 1), (9, 4, 2), (9, 4, 4), (1, 4, 4), (7, 8, 2)],
)
def test_evaluation_sees_every_example_once(size, batch_size, process_count):
    seen, numbers = [], set()
    for index in range(process_count):
        batches = list(
            eval_batches(Numbered(size), plain, batch_size=batch_size, process_index=index, process_count=process_count)
        )
        numbers.add(len(batches))
        for batch in batches:
            b = batch_size // process_count
            assert (batch["image"].shape, batch["label"].shape, batch["mask"].shape) == ((b, 2, 3, 3), (b,), (b,))
            assert (batch["image"].dtype, batch["label"].dtype, batch["mask"].dtype) == (np.uint8, np.int32, bool)
            assert not batch["image"][~batch["mask"]].any() and not batch["label"][~batch["mask"]].any()
            np.testing.assert_array_equal(batch["image"][batch["mask"]][:, 0, 0, 0], batch["label"][batch["mask"]])
            seen += batch["label"][batch["mask"]].tolist()
    assert sorted(seen) == list(range(size))
    assert numbers == {-(-size // batch_size)}


def test_steps_per_epoch():
    assert steps_per_epoch(1_281_167, 1024) == 1251
    with pytest.raises(ValueError, match="batch_size=14 gives no whole batch out of num_examples=13"):
        steps_per_epoch(13, 14)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"batch_size": 14}, "no whole batch"),
        ({"process_count": 3}, "batch_size=4 is not divisible by process_count=3"),
        ({"process_index": 2, "process_count": 2}, "process_index=2 is not below process_count=2"),
        ({"workers": -1}, "workers=-1"),
        ({"on_corrupt": "ignore"}, "on_corrupt='ignore' has to be 'fail' or 'skip'"),
        ({"start_step": 7}, "start_step=7, stop_step=6"),
        ({"seed": -1}, "seed=-1"),
    ],
)
def test_wrong_arguments_are_refused_when_called(options, said):
    with pytest.raises(ValueError, match=said):
        train(**options)


def test_too_little_shared_memory_is_refused(monkeypatch):
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr(pipeline.shutil, "disk_usage", lambda path: usage)
    train(workers=6, batch_size=8, stop_step=2)  # 2 workers have something to do; 2 batches, 8 pictures of 12 bytes
    with pytest.raises(ValueError, match=r"workers=6 need .* in /dev/shm.*--shm-size"):
        train(workers=6, batch_size=8)


def test_workers_touch_no_device_and_end_with_the_iterator():
    batches = train(transform=backends, workers=2, stop_step=1000)
    assert not next(batches)["image"].any()
    assert len(workers()) == 2
    del batches
    assert not workers()
    assert wait_until(lambda: not list_shared_memory())


def list_shared_memory():
    return [
        link
        for link in map(
            os.readlink, (entry.path for entry in os.scandir(f"/proc/{os.getpid()}/fd") if entry.is_symlink())
        )
        if link.startswith("/dev/shm/psm_")
    ]


def run_program(tmp_path, *lines):
    program = tmp_path / "program.py"
    program.write_text(
        "\n".join(
            [
                "import os, signal, sys",
                f"sys.path.insert(0, {os.path.dirname(__file__)!r})",
                "from test_pipeline import *",
                "from flatten_jax.data.pipeline import prefetch",
                "if __name__ == '__main__':",
                *(f"    {line}" for line in lines),
            ]
        )
    )
    env = os.environ | {"PYTHONPATH": str(Path(pipeline.__file__).parents[2])}
    return subprocess.run([sys.executable, program], capture_output=True, text=True, timeout=60, env=env)


def test_workers_end_when_their_parent_is_killed(tmp_path):
    done = run_program(
        tmp_path,
        "batches = train(workers=2, stop_step=1000)",
        "next(batches)",
        "print(*workers(), flush=True)",
        "os.kill(os.getpid(), signal.SIGKILL)",
    )
    assert done.returncode == -signal.SIGKILL
    pids = [int(pid) for pid in done.stdout.split()]
    assert len(pids) == 2
    assert wait_until(lambda: not any(map(runs, pids)))


@pytest.mark.parametrize(
    "batches", ["prefetch(train(workers=1, stop_step=1000), str)", "train(workers=1, stop_step=1000)"]
)
def test_a_program_that_closes_nothing_ends_in_silence(tmp_path, batches):
    done = run_program(tmp_path, f"batches = {batches}", "next(batches)")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
