"""SIGTERM and SIGINT: heard at any time, acted on at the same step by all processes."""

import concurrent.futures
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

POLL_SECONDS = 0.1


class Preempted(Exception):
    """A signal asked for the end. `status` is the exit status that goes with it, 128 + the signal's number."""

    def __init__(self, status: int):
        super().__init__(f"ended by {signal.Signals(status - 128).name}")
        self.status = status


class Preemption:
    """A context in which signals end the run in order.

    Before `defer` there is nothing to save, and a signal ends the process at once. After it the first signal makes
    `check` raise Preempted, and a second one ends the process at once.

    One process alone notices at its next check: a step, a batch of evaluation, or a tenth of a second of compilation.
    Several agree by one small collective at every check, whose result is read at the next one, so that the device
    never waits for the host: they stop together, two steps or batches after the signal, and not while compiling.
    """

    def __init__(self, mesh: Mesh):
        self._mesh = Mesh(mesh.devices.reshape(-1), ("all",))
        self._any = jax.jit(jnp.max, out_shardings=NamedSharding(self._mesh, P()))
        self._received = 0
        self._deferred = False
        self._pending: jax.Array | None = None

    def __enter__(self) -> "Preemption":
        self._before = {}
        if threading.current_thread() is threading.main_thread():  # others may not set handlers
            for number in (signal.SIGTERM, signal.SIGINT):
                self._before[number] = signal.signal(number, self._hear)
        return self

    def __exit__(self, *_: Any) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _hear(self, number: int, frame: Any) -> None:
        name = signal.Signals(number).name
        if self._received or not self._deferred:
            os.write(
                2, f"\n{name}: ending at once, {'as asked twice' if self._received else 'nothing to save'}\n".encode()
            )
            os._exit(128 + number)
        self._received = number
        os.write(2, f"\n{name}: saving a checkpoint, then ending; once more ends at once\n".encode())

    def defer(self) -> None:
        """From now on there is something to save."""
        self._deferred = True

    def check(self) -> None:
        """Raise Preempted if any process was told to end; in several processes at the same call."""
        received = self._received
        if jax.process_count() > 1:
            flags = np.full(jax.local_device_count(), received, np.int32)
            flags = jax.make_array_from_process_local_data(NamedSharding(self._mesh, P("all")), flags)
            latest, self._pending = self._pending, self._any(flags)
            received = 0 if latest is None else int(latest)
        if received:
            raise Preempted(128 + received)

    def watch(self, batches: Iterable[Any]) -> Iterator[Any]:
        """The batches, with a check before each."""
        for batch in batches:
            self.check()
            yield batch

    def interruptible(self, function: Callable[[], Any]) -> Any:
        """function() in a thread, because Python hears no signal while its main thread compiles.

        After Preempted the thread goes on; end the process by `os._exit`, which does not wait for it.
        """
        future = concurrent.futures.ThreadPoolExecutor(1).submit(function)
        while not concurrent.futures.wait([future], POLL_SECONDS).done:
            if jax.process_count() == 1:
                self.check()
        return future.result()
