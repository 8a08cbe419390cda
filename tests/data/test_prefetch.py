"""Elements are made ahead of their use, by a thread that ends with the iterator."""

import threading
import time

import pytest

from flatten_jax.data.pipeline import prefetch

from .test_pipeline import wait_until


def test_prefetch_runs_ahead_by_depth():
    given = []
    ahead = prefetch((given.append(i) or i for i in range(10)), lambda i: -i, depth=3)
    assert next(ahead) == 0
    assert wait_until(lambda: len(given) == 4)  # one for the consumer, three ahead
    time.sleep(0.1)
    assert given == [0, 1, 2, 3]
    assert list(ahead) == [-i for i in range(1, 10)]


def test_prefetch_raises_where_the_element_would_come():
    def numbers():
        yield from range(3)
        raise RuntimeError("from the source")

    ahead = prefetch(numbers(), lambda i: i, depth=5)
    assert [next(ahead) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(RuntimeError, match="from the source"):
        next(ahead)
    with pytest.raises(ZeroDivisionError):
        list(prefetch(range(3), lambda i: 1 // (2 - i)))
    with pytest.raises(ValueError, match="depth=0"):
        prefetch(range(3), lambda i: i, depth=0)


def test_closing_prefetch_stops_its_thread_and_closes_the_source():
    closed = threading.Event()

    def numbers():
        try:
            yield from range(10**9)
        finally:
            closed.set()

    source = numbers()
    ahead = prefetch(source, lambda i: i)
    next(ahead)
    ahead.close()
    assert closed.is_set()
    assert not any(thread.name == "prefetch" for thread in threading.enumerate())
