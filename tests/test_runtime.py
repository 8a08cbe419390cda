"""Settings of XLA and JAX."""

import subprocess
import sys

from flatten_jax import runtime


def test_this_jax_takes_the_options_for_the_cpu():
    assert runtime.compiler_options("cpu"), "this JAX has no such option: see whether it still needs one"
    assert runtime.compiler_options("tpu") == {}


def test_compiled_programs_are_kept_where_the_user_keeps_caches(tmp_path):
    program = (
        "from flatten_jax import runtime; import jax; runtime.cache_compilations();"
        "jax.config.update('jax_persistent_cache_min_compile_time_secs', 0); jax.jit(lambda x: x + 1)(1.0)"
    )
    environment = {"PATH": "", "XDG_CACHE_HOME": str(tmp_path), "JAX_PLATFORMS": "cpu"}
    subprocess.run([sys.executable, "-c", program], env=environment, check=True)
    assert list((tmp_path / "flatten_jax").glob("cpu-*/*"))


def test_a_place_that_the_user_chose_is_left_alone(tmp_path):
    program = (
        "from flatten_jax import runtime; import jax; runtime.cache_compilations();"
        "print(jax.config.jax_compilation_cache_dir)"
    )
    environment = {"PATH": "", "JAX_COMPILATION_CACHE_DIR": str(tmp_path), "JAX_PLATFORMS": "cpu", "HOME": "/none"}
    said = subprocess.run([sys.executable, "-c", program], env=environment, check=True, capture_output=True, text=True)
    assert said.stdout.strip() == str(tmp_path)
