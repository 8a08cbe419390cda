"""One run in a folder of a bucket at a time: a claim that its holder renews, as no object there ends with a process.

Every process that wants the folder writes a claim of its own, lock/<name>, and holds it if no other one is there. Lists
of Google Cloud Storage show at once what was written, so of two processes at most one holds it. A claim is given up at
the end of the process. That of a killed process stays: it is known for dead at once where the process ran on this
machine, and elsewhere if it is not renewed while another process watches it for `PATIENCE` seconds.
"""

import contextlib
import json
import os
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from absl import logging

from flatten_jax import paths
from flatten_jax.training import lock

BEAT = 20.0  # seconds between renewals
PATIENCE = 5 * BEAT


@contextlib.contextmanager
def only_run_in_bucket(folder: Any) -> Iterator[str]:
    """Hold the claim of a folder of a bucket, an epath.Path; gives who else has it, or ""."""
    place = folder / "lock"
    ours = place / f"{uuid.uuid4().hex}.json"
    claim = {"who": lock.who(), "process": _identity(os.getpid())}
    try:
        dead, other = _watch(place)
        if not other:
            _write(ours, claim, 0)
            # Another one that came at the same moment may see ours too, and then neither has it.
            new = {name: claim for name, claim in _claims(place).items() if name not in dead and name != ours.name}
            other = next((claim["who"] for claim in new.values()), "")
            if other:
                ours.unlink(missing_ok=True)
    except Exception as error:  # of the client's many kinds
        raise OSError(
            f"{folder} cannot be claimed: {paths.first_line(error)}; is there such a bucket, and may you write there?"
        ) from error
    if other:
        yield other
        return
    done = threading.Event()
    beats = threading.Thread(target=_renew, args=(ours, claim, dead, done), daemon=True)
    beats.start()
    try:
        yield ""
    finally:
        done.set()
        beats.join(BEAT)
        with contextlib.suppress(Exception):  # it is then taken for that of a killed process, which is true soon
            ours.unlink(missing_ok=True)


def _watch(place: Any) -> tuple[set[str], str]:
    """(names of claims whose process is dead, who is alive or ""): waits where it cannot be known at once."""
    began, first = time.monotonic(), None
    while True:
        claims, waited = _claims(place), time.monotonic() - began
        open_ones = {name: claim for name, claim in claims.items() if not (_is_here(claim) and not _runs(claim))}
        if not open_ones:
            return set(claims), ""
        elsewhere = [claim["who"] for claim in open_ones.values() if not _is_here(claim)]
        if first is None and elsewhere:
            print(
                f"{place.parent} was claimed by {elsewhere[0]}; if that is not renewed within {PATIENCE:g} s its "
                "process is dead, and this one goes on",
                file=sys.stderr,
                flush=True,
            )
        first = open_ones if first is None else first
        for name, claim in open_ones.items():
            if claim != first.get(name) or (_is_here(claim) and waited > lock.PATIENCE):
                return set(claims) - set(open_ones), claim["who"]
        if waited > PATIENCE:
            for who in elsewhere:
                logging.warning("%s: the claim of %s was not renewed and is taken over", place.parent, who)
            return set(claims), ""
        time.sleep(min(BEAT, lock.PATIENCE) / 4)


def _renew(ours: Any, claim: dict[str, Any], dead: set[str], done: threading.Event) -> None:
    """Until `done`. Where others have taken the claim for dead, this process ends: two runs would spoil each other."""
    beat = 0
    while not done.wait(BEAT if beat else 0):
        beat += 1
        try:
            names = _names(ours.parent)
            for name in dead & names:
                (ours.parent / name).unlink(missing_ok=True)
            lost = ours.name not in names
            if not lost:
                _write(ours, claim, beat)
        except Exception as error:  # of the network: the next one may get through
            logging.warning("%s could not be renewed: %s", ours, paths.first_line(error))
            continue
        if lost and not done.is_set():
            print(
                f"error: another run took {ours.parent.parent} while this process was not heard of for more than "
                f"{PATIENCE:g} s; this one ends without saving",
                file=sys.stderr,
                flush=True,
            )
            os._exit(1)


def _write(ours: Any, claim: dict[str, Any], beat: int) -> None:
    ours.write_text(json.dumps({**claim, "beat": beat}) + "\n")


def _names(place: Any) -> set[str]:
    try:
        return {path.name for path in place.iterdir()}
    except FileNotFoundError:
        return set()


def _claims(place: Any) -> dict[str, dict[str, Any]]:
    """{name: what it says}, of those that are still there when they are read."""
    found = {}
    for name in _names(place):
        with contextlib.suppress(FileNotFoundError):
            found[name] = json.loads((place / name).read_text())
    return found


def _identity(pid: int) -> list[Any] | None:
    """[the machine since it was started, its space of process numbers, the number, since when]; None if none is it."""
    try:
        machine = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        state, *numbers = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        ended = state in "ZX"  # and its parent has not asked yet
        return None if ended else [machine, os.stat("/proc/self/ns/pid").st_ino, pid, numbers[18]]
    except OSError:  # no Linux, or no such process
        return None


def _is_here(claim: dict[str, Any]) -> bool:
    """Whether the process of a claim is, or was, one of this machine."""
    here = _identity(os.getpid())
    return bool(claim["process"] and here and claim["process"][:2] == here[:2])


def _runs(claim: dict[str, Any]) -> bool:
    """Whether the process of a claim of this machine is there."""
    return _identity(claim["process"][2]) == claim["process"]
