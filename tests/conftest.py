"""Every test sees eight virtual CPU devices, so that sharding is tested for real on any machine."""

import collections
import gc
import os
from pathlib import Path

import jax

# Compiling is most of these tests' time: in JAX 0.10 this takes a quarter of it. Processes that tests start inherit it.
_FLAGS = ["--xla_backend_optimization_level=0"]
if jax.__version_info__ < (0, 11):
    _FLAGS.append("--xla_cpu_use_fusion_emitters=false")
os.environ["XLA_FLAGS"] = " ".join([os.environ.get("XLA_FLAGS", ""), *_FLAGS])

# Programs that are kept are millions of objects, in which the collector looks for garbage again and again.
gc.set_threshold(200_000, 50, 100)

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)
# Tests compile the same small programs again and again, in all processes of a session and in the next session. With
# JAX_COMPILATION_CACHE_DIR several clones have one place for them.
if not jax.config.jax_compilation_cache_dir:
    jax.config.update("jax_compilation_cache_dir", str(Path(__file__).parents[1] / ".pytest_cache" / "jax"))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)


def pytest_collection_modifyitems(items):
    """Files with the most slow tests first, so that at the end no worker is left alone with one of them."""
    slow = collections.Counter(item.path for item in items if item.get_closest_marker("slow"))
    items.sort(key=lambda item: -slow[item.path])
