"""One run in a folder at a time: a lock that ends with its process, however that ends."""

import contextlib
import errno
import fcntl
import getpass
import os
import shlex
import socket
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from absl import logging

LOCK_FILE = "lock"
PATIENCE = 5.0  # seconds that a process which was told to end may take


class FolderInUseError(ValueError):
    """Another process has the run's folder."""


@contextlib.contextmanager
def only_run_in(folder: Path, patience: float = PATIENCE) -> Iterator[str]:
    """Hold the lock of a folder, which is made; gives who else has it, or "", after as many seconds of patience.

    The system lets go of it with the process, a killed one too: the file that stays says nothing by itself.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / LOCK_FILE, "a+") as file:
        end = time.monotonic() + patience
        while other := _try(file, folder):
            if time.monotonic() > end:
                yield other
                return
            time.sleep(0.1)
        file.truncate(0)
        file.write(f"{who()}\n")
        file.flush()
        yield ""
        file.truncate(0)


def _try(file: TextIO, folder: Path) -> str:
    """Who else has the lock, or "" when it is ours."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            file.seek(0)
            return file.read().strip() or "another process"
        # Some network file systems know no locks.
        logging.warning("%s cannot be locked (%s): see to it that no other run uses it", folder, error)
    return ""


def who() -> str:
    """This process, for people."""
    try:
        user = getpass.getuser()
    except (OSError, KeyError, ImportError):  # a container's user without a name
        user = str(os.getuid())
    started = time.strftime("%Y-%m-%d %H:%M:%S")
    command = textwrap.shorten(  # as it was typed: sys.argv has the path of the config that was found for it
        shlex.join(sys.orig_argv), 200, placeholder=" ...", break_long_words=False, break_on_hyphens=False
    )
    return f"process {os.getpid()} of {user} on {socket.gethostname()}, since {started} ({command})"
