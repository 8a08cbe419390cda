"""Settings of XLA, JAX and the process that these models gain by; main.py and the console command use them."""

import ctypes
import functools
import os
import platform
from pathlib import Path

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
    if (platform or jax.default_backend()) != "cpu":
        return {}
    try:
        jax.jit(lambda x: x, compiler_options=_CPU_OPTIONS).lower(0.0).compile()
    except jax.errors.JaxRuntimeError:  # another XLA, which has no such option
        return {}
    return _CPU_OPTIONS


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


def keep_freed_memory(limit: int = 4 << 30, threads_share: bool = True) -> None:
    """Has glibc keep freed memory of this process, which it gives back to the system, to be cleared anew, otherwise.

    A step on a CPU allocates hundreds of MiB each time; clearing them was a tenth of its time (docs/notes_speed.md).
    Does nothing where there is no glibc. To be called before JAX starts its threads.

    Args:
        limit: bytes to keep.
        threads_share: one heap for all threads, so that what one freed another can have.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return
    trim_threshold, mmap_threshold, arena_max = -1, -3, -8  # malloc.h
    mallopt(trim_threshold, min(limit, 2**31 - 1))
    if not mallopt(mmap_threshold, min(limit, 1 << 30)):
        mallopt(mmap_threshold, 32 << 20)  # the largest that an older glibc takes
    if threads_share:
        mallopt(arena_max, 1)
