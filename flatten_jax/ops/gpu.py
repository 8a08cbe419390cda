"""What XLA does badly on NVIDIA GPUs, done another way there."""

import jax

from flatten_jax.ops.platform import platform_dependent


def not_shared(x: jax.Array) -> jax.Array:
    """x, of which XLA takes nothing over from elsewhere on NVIDIA GPUs.

    For the backward pass of what is one kernel in the forward: norms that both compute would be computed once, which
    tears that kernel apart, and what is normalised would be kept, in float32.
    """
    return platform_dependent(x, cuda=jax.lax.optimization_barrier, default=lambda x: x)
