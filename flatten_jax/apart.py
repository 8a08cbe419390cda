"""A way to keep XLA's CPU compiler from fusing what is better computed one after the other."""

import functools
from collections.abc import Callable

import jax
from jax.experimental.xla_metadata import set_xla_metadata


def apart(function: Callable) -> Callable:
    """`function` of arrays, compiled by itself: its arguments and results are arrays in memory, fused with nothing.

    XLA's CPU compiler fuses an operation into everything that reads it, and computes it there again: a chain of
    residual gradients once for every block below. It also fuses what it then finds no vector instructions for.
    `jax.lax.optimization_barrier` does not help, XLA removes it before it fuses. What does is a call that may not be
    inlined, which differentiation, sharding and loops pass through (docs/notes_speed.md).

    For the CPU's branch of `jax.lax.platform_dependent`; GPUs and TPUs fuse well.
    """
    compiled = jax.jit(function)

    @functools.wraps(function)
    def call(*args):
        with set_xla_metadata(inlineable="false"):
            return compiled(*args)

    return call
