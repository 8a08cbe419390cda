"""Batches of uint8 pictures, read and transformed by Grain in worker processes.

A batch is a pure function of (seed, step). An epoch's order is a permutation keyed by (seed, epoch), an example's
random numbers are keyed by (seed, epoch, index), and its repetition where it comes again, and the processes of a run
take consecutive slices of the global batch. So nothing depends on the number of workers or processes, and a run resumes
anywhere by `start_step`.
"""

import atexit
import functools
import gc
import logging
import math
import multiprocessing
import os
import queue
import shutil
import signal
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import grain
import numpy as np
from absl import flags
from PIL import Image

from flatten_jax.data.augment import CorruptImageError, decode
from flatten_jax.data.source import Example, Source
from flatten_jax.runtime import keep_freed_memory

Batch = dict[str, np.ndarray]
Faults = tuple[tuple[str, str], ...]  # name of a picture, and what is wrong with it

ORDER, AUGMENTATION = 0, 1  # the streams of random numbers of an epoch
MAX_REPLACEMENTS = 100
# Without worker processes: PIL releases the GIL while it decodes and resizes, so that threads use other cores.
READ_THREADS = 2
SHARED_MEMORY = "/dev/shm"  # how a worker process hands over its batches

log = logging.getLogger(__name__)


def steps_per_epoch(num_examples: int, batch_size: int) -> int:
    """Whole batches in an epoch; the rest of its examples is dropped, other ones in every epoch.

    Raises:
        ValueError: not one whole batch.
    """
    if not 0 < batch_size <= num_examples:
        raise ValueError(f"{batch_size=} gives no whole batch out of {num_examples=}: make it smaller")
    return num_examples // batch_size


def train_batches(
    source: Source,
    transform: Callable[[Image.Image, np.random.Generator], np.ndarray],
    *,
    batch_size: int,
    seed: int,
    start_step: int,
    stop_step: int,
    process_index: int = 0,
    process_count: int = 1,
    workers: int = 0,
    on_corrupt: str = "fail",
    repeats: int = 1,
) -> Iterator[Batch]:
    """This process's part b = batch_size / process_count of the batches start_step, ..., stop_step - 1.

    Args:
        source: the examples.
        transform: (picture, random generator) -> uint8 (height, width, 3); picklable if `workers` > 0.
        batch_size: examples of a step over all processes.
        seed: a non-negative number, the same in all processes.
        workers: worker processes; each makes whole batches. 0: threads of this process.
        on_corrupt: "fail", or "skip": a picture that cannot be decoded gives its place to another one, chosen by
            (seed, epoch, index), is counted in `skipped`, and is named once in the log.
        repeats: how often in a row a picture comes, each time with random numbers of its own: repeated augmentation
            (Hoffer et al., CVPR 2020), as in DeiT. An epoch has as many pictures as without, and so takes its share of
            the examples only, other ones in every epoch.

    Yields:
        image uint8 (b, height, width, 3), label int32 (b,), skipped int32 (b,), 1 where a picture was replaced. Of a
        transform with `labelled`, which takes the example, label is what that makes of it.

    Raises:
        ValueError: arguments that do not fit together (when called).
        CorruptImageError: with "fail" (at `next`); also out of a worker process.
    """
    steps_per_epoch(len(source), batch_size)
    local_size = size_here(batch_size, process_index, process_count)
    if on_corrupt not in ("fail", "skip"):
        raise ValueError(f"{on_corrupt=} has to be 'fail' or 'skip'")
    if repeats < 1:
        raise ValueError(f"{repeats=} has to be 1, for no repetition, or more")
    if seed < 0 or not 0 <= start_step <= stop_step:
        raise ValueError(f"{seed=}, {start_step=}, {stop_step=}: expected 0 <= seed and 0 <= start_step <= stop_step")
    batches = _TrainBatches(
        source,
        transform,
        batch_size,
        process_index * local_size,
        local_size,
        seed,
        start_step,
        stop_step,
        on_corrupt,
        repeats,
    )
    return iterate(batches, _picture_shape(transform, np.random.default_rng(0)), workers)


def train_batch(
    source: Source,
    transform: Callable[..., np.ndarray],
    *,
    batch_size: int,
    seed: int,
    step: int,
    repeats: int = 1,
) -> Batch:
    """The batch of one step, made in this thread. Arguments, result and errors as in `train_batches`."""
    return _TrainBatches(source, transform, batch_size, 0, batch_size, seed, step, step + 1, "fail", repeats)[0][0]


def eval_batches(
    source: Source,
    transform: Callable[[Image.Image], np.ndarray],
    *,
    batch_size: int,
    process_index: int = 0,
    process_count: int = 1,
    workers: int = 0,
) -> Iterator[Batch]:
    """Every example exactly once over all processes, which all yield the same number of batches.

    Args: as in `train_batches`; `transform` takes a picture alone.

    Yields:
        image uint8 (b, height, width, 3), label int32 (b,), mask bool (b,). Where mask is False there is no example:
        a black picture with label 0, at the end of the last batch.

    Raises:
        ValueError: arguments that do not fit together (when called).
        CorruptImageError: a picture cannot be decoded (at `next`). An evaluation never shrinks in silence.
    """
    if len(source) == 0:
        raise ValueError("the evaluation source has no examples")
    local_size = size_here(batch_size, process_index, process_count)
    batches = _EvalBatches(source, transform, batch_size, process_index * local_size, local_size)
    return iterate(batches, _picture_shape(transform), workers)


def prefetch(iterator: Iterable[Any], put: Callable[[Any], Any], depth: int = 2) -> Iterator[Any]:
    """Runs ahead of the consumer in a thread: keeps up to `depth` elements that already went through `put`.

    Args:
        iterator: where elements come from; closed with the result.
        put: applied in the thread, for instance a transfer to the device.
        depth: elements held besides the one that the consumer has.

    Yields:
        the results of `put` in order. An error of `iterator` or `put` comes out at the `next` of its element.
    """
    if depth < 1:
        raise ValueError(f"{depth=} has to be at least 1")
    return _closed_at_exit(_prefetch(iter(iterator), put, depth))


def _prefetch(iterator: Iterator[Any], put: Callable[[Any], Any], depth: int) -> Iterator[Any]:
    places, ready, stop = threading.Semaphore(depth), queue.SimpleQueue(), threading.Event()

    def fill():
        try:
            while places.acquire() and not stop.is_set():
                ready.put((put(next(iterator)), None))
        except BaseException as error:
            ready.put((None, error))
        finally:
            # Here, because a generator cannot be closed from outside of the thread that runs it.
            getattr(iterator, "close", lambda: None)()

    thread = threading.Thread(target=fill, daemon=True, name="prefetch")
    thread.start()
    try:
        while True:
            element, error = ready.get()
            if isinstance(error, StopIteration):
                return
            if error is not None:
                raise error
            places.release()
            yield element
    finally:
        stop.set()
        places.release()
        thread.join()


def _closed_at_exit(generator: Iterator[Any]) -> Iterator[Any]:
    """Ends threads and worker processes before Python and Grain take down what they use, the youngest first."""
    reference = weakref.ref(generator)

    def close():
        if (alive := reference()) is not None:
            alive.close()

    atexit.register(close)
    return generator


@dataclass(frozen=True)
class _TrainBatches:
    """Random access to one process's part of the training batches, as Grain wants it."""

    source: Source
    transform: Callable[[Image.Image, np.random.Generator], np.ndarray]
    batch_size: int
    offset: int
    local_size: int
    seed: int
    start_step: int
    stop_step: int
    on_corrupt: str
    repeats: int

    def __len__(self) -> int:
        return self.stop_step - self.start_step

    def __getitem__(self, index: int) -> tuple[Batch, Faults]:
        """Returns the batch of step `start_step + index` and the faults of the pictures it skipped."""
        size = len(self.source)
        epoch, step = divmod(self.start_step + index, steps_per_epoch(size, self.batch_size))
        first = step * self.batch_size + self.offset
        images, labels, all_faults = None, None, []
        skipped = np.empty(self.local_size, np.int32)
        order = _order(self.seed, epoch, size)
        for place in range(self.local_size):
            which, repetition = divmod(first + place, self.repeats)
            image, label, faults = self._example(epoch, int(order[which]), repetition)
            if images is None:
                images = np.empty((self.local_size, *image.shape), image.dtype)
                kind = label.dtype if np.ndim(label) else np.int32
                labels = np.empty((self.local_size, *np.shape(label)), kind)
            images[place] = image  # at once, so that the next picture reuses this one's memory, still in the cache
            labels[place] = label
            skipped[place] = bool(faults)
            all_faults += faults
        return {"image": images, "label": labels, "skipped": skipped}, tuple(all_faults)

    def _example(self, epoch: int, index: int, repetition: int) -> tuple[np.ndarray, int | np.ndarray, Faults]:
        key = [self.seed, epoch, index, AUGMENTATION]
        rng = np.random.default_rng([*key, repetition] if repetition else key)
        faults = []
        while True:
            try:
                return *_picture(self.source[index], self.transform, rng), tuple(faults)
            except CorruptImageError as error:
                if self.on_corrupt == "fail":
                    raise
                faults.append((error.name, str(error)))
                if len(faults) == MAX_REPLACEMENTS:
                    raise ValueError(f"{MAX_REPLACEMENTS} pictures in a row are corrupt; the last: {error}") from error
                index = int(rng.integers(len(self.source)))


@dataclass(frozen=True)
class _EvalBatches:
    source: Source
    transform: Callable[[Image.Image], np.ndarray]
    batch_size: int
    offset: int
    local_size: int

    def __len__(self) -> int:
        return -(-len(self.source) // self.batch_size)

    def __getitem__(self, index: int) -> tuple[Batch, Faults]:
        first = index * self.batch_size + self.offset
        last = min(first + self.local_size, len(self.source))
        images = np.zeros((self.local_size, *_picture_shape(self.transform)), np.uint8)
        labels = np.zeros(self.local_size, np.int32)
        for place, i in enumerate(range(first, last)):
            images[place], labels[place] = _picture(self.source[i], self.transform)
        return {"image": images, "label": labels, "mask": np.arange(self.local_size) < last - first}, ()


@functools.lru_cache(maxsize=2)  # two, because workers and threads run across the end of an epoch
def _order(seed: int, epoch: int, size: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch, 0, ORDER]).permutation(size)


def _picture(
    example: Example, transform: Callable[..., np.ndarray], *arguments: Any
) -> tuple[np.ndarray, int | np.ndarray]:
    try:
        if labelled := getattr(transform, "labelled", None):  # transforms picture and label together
            return labelled(example, *arguments)
        if from_file := getattr(transform, "from_file", None):
            return from_file(example.image, example.name, *arguments), example.label
        return transform(decode(example.image, example.name), *arguments), example.label
    except CorruptImageError:
        raise
    except Exception as error:
        error.add_note(f"while transforming the picture {example.name!r}")
        raise


def _picture_shape(transform: Callable[..., np.ndarray], *arguments: Any) -> tuple[int, ...]:
    if shape := getattr(transform, "shape", None):
        return shape
    return transform(Image.new("RGB", (32, 32)), *arguments).shape


def size_here(batch_size: int, process_index: int, process_count: int) -> int:
    """Examples of a batch that one process reads."""
    if not 0 <= process_index < process_count:
        raise ValueError(f"{process_index=} is not below {process_count=}")
    if batch_size < 1 or batch_size % process_count:
        raise ValueError(f"{batch_size=} is not divisible by {process_count=}")
    return batch_size // process_count


class RandomAccess(Protocol):
    """Batches by number, each with the faults of the pictures that it skipped; `local_size` examples each here."""

    local_size: int

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> tuple[Batch, Faults]: ...


def iterate(batches: RandomAccess, picture_shape: tuple[int, ...], workers: int) -> Iterator[Batch]:
    """All batches in order, read by Grain in worker processes or threads, and closed when Python ends."""
    if workers < 0:
        raise ValueError(f"{workers=} has to be 0 or more")
    workers = min(workers, len(batches))
    # A worker writes one batch while its last one waits. A full /dev/shm would kill it by SIGBUS, without a message.
    needed = 2 * workers * batches.local_size * math.prod(picture_shape)
    if workers and os.path.isdir(SHARED_MEMORY) and needed > (free := shutil.disk_usage(SHARED_MEMORY).free):
        raise ValueError(
            f"{workers=} need {needed / 2**20:.0f} MiB in {SHARED_MEMORY}, which has {free / 2**20:.0f} MiB left: "
            f"enlarge it (docker run --shm-size) or use fewer workers or a smaller batch"
        )
    return _closed_at_exit(_generate(batches, workers))


def _generate(batches: RandomAccess, workers: int) -> Iterator[Batch]:
    if not flags.FLAGS.is_parsed():  # Grain 0.2.18 reads its flags, which raises outside of absl.app
        flags.FLAGS.mark_as_parsed()
    threads = 0 if workers else READ_THREADS
    dataset = grain.MapDataset.source(batches).to_iter_dataset(
        grain.ReadOptions(num_threads=threads, prefetch_buffer_size=threads)
    )
    if workers:
        dataset = dataset.mp_prefetch(grain.MultiprocessingOptions(num_workers=workers), worker_init_fn=_start_worker)
    iterator = iter(dataset)
    told = set()
    try:
        for batch, faults in iterator:
            for name, fault in faults:
                if name not in told:
                    told.add(name)
                    log.warning("skipped a training picture: %s", fault)
            if workers:  # out of shared memory, where JAX would alias it on a CPU and a batch alive at exit would stay
                batch = {key: np.array(value) for key, value in batch.items()}
            yield batch
    finally:
        iterator.close()  # ends the worker processes
        if workers:
            batch = None
            gc.collect()  # a cycle inside Grain 0.2.18 keeps the last batch in shared memory


def _start_worker(index: int, count: int) -> None:
    """Ties a worker process to its parent: Grain's workers outlive a killed parent and hold their memory for ever."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole process group; the parent ends the workers

    # A picture passes through ten or more buffers of 0.1 to 0.6 MB, which were cleared anew for every picture.
    keep_freed_memory(64 << 20)

    def follow(parent):
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, args=(multiprocessing.parent_process(),), daemon=True).start()
