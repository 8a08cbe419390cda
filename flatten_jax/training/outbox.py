"""Files of a run that grow, such as its metrics: in its folder, or beside it where that is a bucket's."""

import tempfile
import time
from pathlib import Path
from typing import Any

from flatten_jax import paths

EVERY = 60.0  # seconds between copies: an object is written whole each time, and at most once a second


class Outbox:
    """A local folder to write to: the one that is given, or for a bucket's a scratch one that is copied there.

    Attributes:
        place: the local folder.
    """

    def __init__(self, folder: Any):
        self._target = folder if paths.is_bucket(folder) else None
        self._scratch = None if self._target is None else tempfile.TemporaryDirectory(prefix="flatten_jax-")
        self.place = folder if self._scratch is None else Path(self._scratch.name)
        self._sent: dict[str, tuple[int, int]] = {}
        self._last = time.monotonic()

    def fetch(self, name: str) -> None:
        """Put a file of the bucket, if it is there, into `place`."""
        if self._target is not None and (self._target / name).exists():
            (self.place / name).write_bytes((self._target / name).read_bytes())

    def send(self, *, now: bool = True) -> None:
        """Copy what is new or has changed; unless `now`, at most every `EVERY` seconds."""
        if self._target is None or not (now or time.monotonic() - self._last > EVERY):
            return
        self._last = time.monotonic()
        for file in sorted(path for path in self.place.rglob("*") if path.is_file()):
            name, state = file.relative_to(self.place).as_posix(), (file.stat().st_size, file.stat().st_mtime_ns)
            if self._sent.get(name) != state:
                (self._target / name).write_bytes(file.read_bytes())
                self._sent[name] = state
