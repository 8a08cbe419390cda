"""Every test sees eight virtual CPU devices, so that sharding is tested for real on any machine."""

from pathlib import Path

import jax

jax.config.update("jax_num_cpu_devices", 8)
# Tests of one session, in whatever process, compile the same small programs again and again.
jax.config.update("jax_compilation_cache_dir", str(Path(__file__).parents[1] / ".pytest_cache" / "jax"))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
