"""Real files of a real checkpoint, damaged: the fault is named, the step before is used, nothing is lost."""

import json
import re
import shutil
import subprocess

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flatten_jax.training import integrity
from flatten_jax.training.checkpoint import Checkpoints, load_weights
from flatten_jax.training.integrity import DamagedCheckpointError
from flatten_jax.training.sharding import by_size, make_mesh, over_data
from flatten_jax.training.step import TrainState


def state_at(step, ema=True, size=128):
    kernel = jnp.asarray(np.random.default_rng(step).normal(size=(size, 96)), jnp.float32)
    params = {"body": {"kernel": kernel}, "head": {"bias": jnp.full(4, 1.0 * step)}}
    opt_state, average = {"mu": jax.tree.map(jnp.negative, params)}, jax.tree.map(jnp.square, params)
    return TrainState(jnp.int32(step), params, {}, opt_state, average if ema else None)


def abstract(state):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A folder with the checkpoints 5 and 6."""
    folder = tmp_path_factory.mktemp("whole")
    checkpoints = Checkpoints(folder)
    for step in (5, 6):
        checkpoints.save(state_at(step), {"step": step}, {"eval/acc1": 1.0 * step})
    checkpoints.close()
    return folder


def data_file(folder):
    """The largest file of step 6: the arrays."""
    return max((p for p in (folder / "6").rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)


def flip_bits(path, places=1):
    content = bytearray(path.read_bytes())
    for place in range(places):
        content[len(content) * (2 * place + 1) // (2 * places)] ^= 4
    path.write_bytes(content)


def zero_a_block(path):
    content = bytearray(path.read_bytes())
    content[5000:5512] = bytes(512)
    path.write_bytes(content)


def half(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


LEAF = r"step 6, leaf [\w.]+: "
DAMAGES = {
    "flipped bit": (lambda f: flip_bits(data_file(f)), LEAF + "(checksum mismatch|.*cannot be read)"),
    "zeroed block": (lambda f: zero_a_block(data_file(f)), LEAF + "(checksum mismatch|.*cannot be read)"),
    "truncated array": (lambda f: half(data_file(f)), LEAF + r"/.*/state.* cannot be read \("),
    "empty array": (lambda f: data_file(f).write_bytes(b""), LEAF + r"/.*/state.* cannot be read \("),
    "deleted array": (lambda f: data_file(f).unlink(), LEAF + r"/.*/state.* cannot be read \("),
    "deleted index": (lambda f: (f / "6/state/manifest.ocdbt").unlink(), LEAF + r"/.*/state.* cannot be read \("),
    "no metadata": (
        lambda f: (f / "6/state/_METADATA").unlink(),
        "step 6 is incomplete: /.*/6/state/_METADATA is miss",
    ),
    "garbage metadata": (lambda f: half(f / "6/state/_METADATA"), "step 6: /.*/6/state/_METADATA is garbage"),
    "other metadata": (
        lambda f: (f / "6/state/_METADATA").write_text((f / "6/state/_METADATA").read_text().replace("body", "bony")),
        "step 6: /.*/_METADATA is garbage .it lacks .*ema.body.kernel",
    ),
    "garbage evaluation": (lambda f: half(f / "6/metrics/metrics"), "step 6: /.*/6/metrics/metrics is garbage"),
    "empty folder": (lambda f: (f / "999").mkdir(), "step 999 is incomplete: /.*/999/_CHECKPOINT_METADATA is missing"),
    "half-copied": (
        lambda f: shutil.copytree(f / "6", f / "7", ignore=shutil.ignore_patterns("position")),
        "step 7 is incomplete: /.*/7/position/metadata is missing",
    ),
    "half-copied arrays": (
        lambda f: shutil.copytree(f / "6", f / "7", ignore=shutil.ignore_patterns("ocdbt.process_*")),
        r"step 7, leaf [\w.]+: /.*/7/state.* cannot be read",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_named_and_the_step_before_is_used(whole, tmp_path, damage, caplog):
    folder = tmp_path / "checkpoints"
    shutil.copytree(whole, folder)
    inflict, message = DAMAGES[damage]
    inflict(folder)
    checkpoints = Checkpoints(folder)
    step = checkpoints.newest()
    assert step == (5 if "step 6" in message else 6)
    assert [m for m in caplog.messages if re.search(message, m)], caplog.text
    assert f"used instead is step {step}" in caplog.text
    restored = checkpoints.restore(step, abstract(state_at(step)))
    jax.tree.map(np.testing.assert_array_equal, restored, state_at(step))
    # The damaged folder is kept, and not in the way of the same step, which the run reaches again.
    assert [p.name for p in folder.iterdir() if p.name.endswith(".damaged")]
    if step == 5:
        checkpoints.save(state_at(6), {"step": 6}, None)
        checkpoints.close()
        assert checkpoints.steps() == [5, 6]


def test_when_none_is_whole_it_is_an_error_however_often_one_tries(whole, tmp_path):
    folder = tmp_path / "checkpoints"
    shutil.copytree(whole / "6", folder / "6")
    flip_bits(data_file(folder))
    for _ in range(2):
        with pytest.raises(DamagedCheckpointError, match="has no checkpoint that is whole"):
            Checkpoints(folder).newest()


def test_weights_of_a_damaged_step_that_is_named_are_refused(whole, tmp_path):
    shutil.copytree(whole / "6", tmp_path / "6")
    for path in (tmp_path / "6/state").rglob("d/*"):  # Orbax spreads the arrays over files, another way each time
        if path.stat().st_size > 10_000:
            flip_bits(path, places=200)  # in the arrays of all kinds
    with pytest.raises(DamagedCheckpointError, match="step 6, leaf "):
        load_weights(tmp_path / "6", None)


def test_what_reaches_the_devices_is_compared_too(whole, tmp_path):
    """Damage between the look at the files and their use."""
    folder = tmp_path / "checkpoints"
    shutil.copytree(whole, folder)
    manifest = folder / "6" / "manifest" / "metadata"
    content = json.loads(manifest.read_text())
    content["leaves"]["params.head.bias"]["checksum"] ^= 1
    manifest.write_text(json.dumps(content))
    with pytest.raises(DamagedCheckpointError, match=r"checksum mismatch of params\.head\.bias"):
        Checkpoints(folder).restore(6, abstract(state_at(6)))


def test_every_other_key_shape_and_dtype_is_listed(whole):
    target = state_at(5, ema=False)
    target.params["body"]["kernel"] = target.params["body"]["kernel"].astype(jnp.bfloat16)
    target.params["head"] = {"weight": jnp.zeros(4)}
    target.opt_state["mu"]["head"]["bias"] = jnp.zeros(5)
    target = target.replace(step=jnp.float32(5))
    with pytest.raises(ValueError) as error:
        Checkpoints(whole).restore(5, abstract(target))
    for line in (
        "ema.body.kernel is in the checkpoint, not in this run",
        "params.head.bias is in the checkpoint, not in this run",
        "params.head.weight is in this run, not in the checkpoint",
        "params.body.kernel: dtype float32 in the checkpoint, bfloat16 in this run",
        "step: dtype int32 in the checkpoint, float32 in this run",
    ):
        assert line in str(error.value)


def test_a_moving_average_that_the_checkpoint_lacks_is_not_made_up(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(state_at(1, ema=False), {}, None)
    checkpoints.wait()
    with pytest.raises(ValueError, match=r"ema.body.kernel is in this run, not in the checkpoint"):
        checkpoints.restore(1, abstract(state_at(1)))


def test_a_save_under_way_is_not_yet_a_step(tmp_path):
    (tmp_path / "7.orbax-checkpoint-tmp").mkdir()
    assert Checkpoints(tmp_path, read_only=True).newest() is None


def test_orbax_refusing_is_not_silent(tmp_path, monkeypatch):
    checkpoints = Checkpoints(tmp_path)
    monkeypatch.setattr(checkpoints._manager(), "save", lambda *args, **kwargs: False)
    with pytest.raises(OSError, match=r"step 3 could not be saved.*refused"):
        checkpoints.save(state_at(3), {}, None)


def test_checksums_are_the_same_on_the_host_and_on_any_mesh():
    x = np.random.default_rng(0).normal(size=(32, 24)).astype(np.float32)
    expected = int(integrity.checksum(x))
    mesh = make_mesh(fsdp=4)
    for y in (
        jnp.asarray(x),
        jax.device_put(x, over_data(mesh)),
        jax.device_put(x, by_size(mesh, np.empty((128, 128)))),
    ):
        assert int(integrity._on_device(y)) == expected
    swapped = x.copy()
    swapped[[0, 1]] = x[[1, 0]]
    assert int(integrity.checksum(swapped)) != expected
    for bit in range(32):
        changed = x.copy()
        changed.view(np.uint32)[3, 5] ^= 1 << bit
        assert int(integrity.checksum(changed)) != expected


@pytest.fixture
def small_disk(tmp_path):
    """A file system of one MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder], capture_output=True)
    if mount.returncode:
        pytest.skip(f"mounting takes more rights: {mount.stderr.decode()}")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


def test_a_full_disk_is_reported_with_path_and_space_and_older_steps_stay(small_disk):
    checkpoints = Checkpoints(small_disk)
    checkpoints.save(state_at(1), {}, None)
    checkpoints.wait()
    with pytest.raises(
        OSError, match=rf"step 2 could not be saved in {small_disk}, where [\d.]+ MiB are free"
    ) as error:
        checkpoints.save(state_at(2, size=2048), {}, None)
        checkpoints.wait()
    assert r"before it are whole: [1]" in str(error.value)
    assert Checkpoints(small_disk).newest() == 1
