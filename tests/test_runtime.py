"""Settings of XLA and JAX."""

import platform
import subprocess
import sys

import pytest

from flatten_jax import runtime


def says(program: str, **environment: str) -> str:
    environment = {"PATH": "", "JAX_PLATFORMS": "cpu"} | environment
    run = subprocess.run([sys.executable, "-c", program], env=environment, check=True, capture_output=True, text=True)
    return run.stdout.strip()


def test_this_jax_takes_the_options_for_the_cpu():
    assert runtime.compiler_options("cpu"), "this JAX has no such option: see whether it still needs one"
    assert runtime.compiler_options("tpu") == {}


def test_compiled_programs_are_kept_where_the_user_keeps_caches(tmp_path):
    program = (
        "from flatten_jax import runtime; import jax; runtime.cache_compilations();"
        "jax.config.update('jax_persistent_cache_min_compile_time_secs', 0); jax.jit(lambda x: x + 1)(1.0)"
    )
    says(program, XDG_CACHE_HOME=str(tmp_path))
    assert list((tmp_path / "flatten_jax").glob("cpu-*/*"))


def test_a_place_that_the_user_chose_is_left_alone(tmp_path):
    program = (
        "from flatten_jax import runtime; import jax; runtime.cache_compilations();"
        "print(jax.config.jax_compilation_cache_dir)"
    )
    assert says(program, JAX_COMPILATION_CACHE_DIR=str(tmp_path), HOME="/none") == str(tmp_path)


def test_each_core_is_a_device_unless_the_user_said_how_many():
    program = "from flatten_jax import runtime; import jax; runtime.device_per_core(); print(jax.device_count())"
    assert runtime.cores() / 2 < int(says(program)) <= runtime.cores()
    assert says(program, JAX_NUM_CPU_DEVICES="3") == "3"
    assert says(program.replace("runtime.d", "jax.devices(); runtime.d")) == "1"
    assert says(program, XLA_FLAGS="--xla_force_host_platform_device_count=5") == "5"


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="of glibc")
def test_freed_memory_is_not_cleared_anew():
    """1.1 GiB, as one array of a training step: more than glibc keeps by any threshold for mappings."""
    program = (
        "import ctypes, resource; from flatten_jax import runtime; runtime.keep_freed_memory();"
        "libc = ctypes.CDLL(None);"
        "libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t];"
        "libc.free.argtypes, size = [ctypes.c_void_p], 1100 << 20;"
        "libc.memset.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t];"
        "use = lambda: (p := libc.malloc(size), libc.memset(p, 1, size), libc.free(p)); use();"
        "faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt; before = faults(); use();"
        "print(faults() - before)"
    )
    assert int(says(program)) < 100  # of 281,600 pages, or 550 huge ones
