"""Several processes on this machine, over loopback: what they compute, how they stop, what they say."""

import signal
import socket

import numpy as np
import pytest

from .command import TINY, finish, metrics, run, signal_at, start

MODEL = (
    *TINY,
    "--config.model.embed_dim=32",  # the patch embedding is large enough to be sharded
    "--config.train.epochs=12",
    "--config.eval.every_epochs=4.0",
    "--config.checkpoint.every_epochs=12.0",
    "--config.checkpoint.keep=9",
    "--config.data.examples=72",  # 4.5 batches: the evaluation has a padded tail
)
SHARDED = (*MODEL, "--config.mesh.fsdp=2")


def start_two(*arguments, also=((), ()), slurm=False):
    """Two processes with two devices each; `also`: what only one of them is given."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {"JAX_NUM_CPU_DEVICES": "2"}
    if slurm:
        # JAX takes the first name of the list, and a port in the highest 2^12 by the job's number.
        environment |= {"SLURM_JOB_ID": str(port), "SLURM_STEP_NODELIST": "localhost,other", "SLURM_NTASKS": "2"}
        return [start(*arguments, *also[i], SLURM_PROCID=str(i), SLURM_LOCALID=str(i), **environment) for i in range(2)]
    flags = (f"--coordinator=127.0.0.1:{port}", "--num_processes=2")
    return [start(*arguments, *also[i], *flags, f"--process_id={i}", **environment) for i in range(2)]


def values(workdir, name):
    return {r["step"]: r[name] for r in metrics(workdir) if name in r}


def assert_same_run(workdir, other):
    for name in ("train/loss", "eval/loss", "eval/acc1"):
        ours, theirs = values(workdir, name), values(other, name)
        assert ours.keys() == theirs.keys()
        np.testing.assert_allclose(list(ours.values()), list(theirs.values()), rtol=2e-4, err_msg=name)
    assert set(values(workdir, "eval/count").values()) == {72}


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """One process with four devices, on which the state is copied."""
    folder = tmp_path_factory.mktemp("alone")
    status, output = run(*MODEL, "--workdir", folder, JAX_NUM_CPU_DEVICES="4")
    assert status == 0, output
    assert "4 devices (4 data x 1 fsdp) of 1 process, cpu: 4 images" in output
    return folder


@pytest.mark.slow
def test_two_processes_compute_what_one_does_also_resumed_on_two_one_and_two(alone, tmp_path):
    """And if only the second of them is told to end, both save the same step."""
    first, second = start_two(*SHARDED, "--workdir", tmp_path)
    for line in first.stdout:
        if "step 4/" in line:
            break
    second.send_signal(signal.SIGTERM)
    (status, output), (_, other) = finish(first), finish(second)
    assert (status, second.returncode) == (143, 143), output + other
    assert "is saved in" in output
    assert "step 4/" not in other, "only the first process prints"

    process = start(*MODEL, "--workdir", tmp_path, JAX_NUM_CPU_DEVICES="4")
    status, output, _ = signal_at(process, "step 20/", signal.SIGTERM)
    assert status == 143, output
    assert "which was saved on 4 devices (2 data x 2 fsdp) of 2 processes, now on 4 devices (4 data x 1 fsdp)" in output

    results = [finish(process) for process in start_two(*SHARDED, "--workdir", tmp_path)]
    assert [status for status, _ in results] == [0, 0], results
    assert "resuming at step 2" in results[0][1]
    assert_same_run(tmp_path, alone)

    results = [finish(process) for process in start_two(*SHARDED, "--workdir", tmp_path, "--mode=eval")]
    assert [status for status, _ in results] == [0, 0], results
    assert f"top-1 {values(tmp_path, 'eval/acc1')[48]:.2f} %" in results[0][1]
    assert "top-1" not in results[1][1]


@pytest.mark.slow
def test_a_process_that_is_alone_says_what_it_waits_for():
    one = ("--coordinator=127.0.0.1:9", "--num_processes=2", "--process_id=1", "--wait_seconds=3")
    status, output = run(*TINY, "--workdir=x", *one)
    assert status == 1
    assert "waiting for all 2 processes at 127.0.0.1:9 to start, for 0.3 s so far" in output
    assert "error: waited 3 s for all 2 processes at 127.0.0.1:9 to start, in vain" in output


@pytest.mark.slow
def test_processes_that_slurm_started_and_that_disagree_say_on_what(tmp_path):
    also = ((), ("--config.train.epochs=11", "--config.eval.batch_size=8"))
    for status, output in map(finish, start_two(*MODEL, "--workdir", tmp_path, also=also, slurm=True)):
        assert status == 1, output
        for line in (
            "train.epochs: 12.0 in process 0, 11.0 in process 1",
            "evaluation batches: 5 in process 0, 9 in process 1",
            "steps: 48 in process 0, 44 in process 1",
        ):
            assert line in output
        assert "Traceback" not in output
