"""Settings of XLA, JAX and the process that these models gain by; main.py and the console command use them."""

import contextlib
import ctypes
import functools
import mmap
import os
import platform
from pathlib import Path
from typing import Any

import jax

# XLA's library for the CPU (YNNPACK in JAX 0.10 to 0.12) for single products and convolutions, and for nothing around
# them: with its neighbours it takes constants as whole arrays, 583 MiB instead of 208 for FLatten-PVT-T on 16 images.
_KINDS = "LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT,LIBRARY_FUSION_TYPE_INDIVIDUAL_CONVOLUTION"
_CPU_OPTIONS = {"xla_cpu_experimental_ynn_fusion_type": _KINDS}


@functools.cache
def compiler_options(platform: str | None = None) -> dict[str, str]:
    """For jax.jit(..., compiler_options=...): empty where there is nothing to gain.

    Args:
        platform: compiled for, such as "cpu" (default: JAX's default backend, which this starts).
    """
    return _accepted(_CPU_OPTIONS) if (platform or jax.default_backend()) == "cpu" else {}


@functools.cache
def unoptimised() -> dict[str, Any]:
    """For jax.jit(..., compiler_options=...) of what runs once on a CPU: half the time to compile."""
    return _accepted({"xla_backend_optimization_level": 0}) if jax.default_backend() == "cpu" else {}


def _accepted(options: dict[str, Any]) -> dict[str, Any]:
    try:
        jax.jit(lambda x: x, compiler_options=options).lower(0.0).compile()
    except jax.errors.JaxRuntimeError:  # another XLA, which has no such option
        return {}
    return options


def cache_compilations() -> None:
    """Keep compiled programs on disk, in ~/.cache/flatten_jax unless JAX's own settings name another place.

    Not for several processes on CPUs: where one of them has a program from the cache and another has not, JAX 0.10
    hangs in the first collective.
    """
    if jax.process_count() > 1 and jax.default_backend() == "cpu":
        jax.config.update("jax_enable_compilation_cache", False)
    elif not jax.config.jax_compilation_cache_dir:
        root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        # Programs for a CPU are for this CPU; a home may be shared by machines.
        host = f"cpu-{platform.node()}" if jax.default_backend() == "cpu" else jax.default_backend()
        jax.config.update("jax_compilation_cache_dir", str(root / "flatten_jax" / host))


def cores() -> int:
    """Of the CPU, those that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def device_per_core() -> None:
    """Has JAX take the CPU's cores for one device each, for what spreads a batch over its devices: inference.

    Two devices of two cores compute 16 images 1.07 to 1.17 times as fast as one device that uses both; a training step
    gains nothing (docs/notes_speed.md). The largest power of two, so that it divides batches. Does nothing once JAX has
    started, or where the user has set JAX_NUM_CPU_DEVICES, or XLA_FLAGS to the same end.
    """
    chosen = "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", "")
    if not chosen and jax.config.jax_num_cpu_devices < 0:
        with contextlib.suppress(RuntimeError):  # JAX has started
            jax.config.update("jax_num_cpu_devices", 1 << cores().bit_length() - 1)


def keep_freed_memory(limit: int | None = None) -> None:
    """Has glibc keep freed memory of this process, which it gives back to the system, to be cleared anew, otherwise.

    A step on a CPU allocates hundreds of MiB each time; clearing them was a tenth of its time, and a sixth where they
    are 1.4 GiB (docs/notes_speed.md). Does nothing where there is no glibc. To be called before JAX starts its threads.

    Args:
        limit: bytes to keep for each thread. Default: all that was ever in use, in one heap for all threads, so that
            what one freed another can have, and in huge pages where Linux has them to give.
    """
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "mallopt"):
        return
    trim_threshold, mmap_threshold, mmap_max, arena_max = -1, -3, -4, -8  # malloc.h
    if limit is not None:
        libc.mallopt(trim_threshold, limit)
        if not libc.mallopt(mmap_threshold, limit):
            libc.mallopt(mmap_threshold, 32 << 20)  # the largest that an older glibc takes
        return
    libc.mallopt(trim_threshold, -1)  # never
    libc.mallopt(mmap_max, 0)  # a mapping beside the heap would be given back
    libc.mallopt(arena_max, 1)
    _heap_in_huge_pages(libc)


def _heap_in_huge_pages(libc: ctypes.CDLL) -> None:
    """Ask for huge pages for half as much heap as there is memory: addresses, of which none is in use yet."""
    libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    libc.free.argtypes = [ctypes.c_void_p]
    page = os.sysconf("SC_PAGE_SIZE")
    size = os.sysconf("SC_PHYS_PAGES") // 2 * page
    start = libc.malloc(size)
    if start:  # not where the system promises no more than it has
        libc.madvise(-(-start // page) * page, size - page, mmap.MADV_HUGEPAGE)
        libc.free(start)
