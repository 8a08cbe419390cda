"""The exact GELU of all models."""

import jax
import jax.numpy as jnp
from jax import lax

from flatten_jax.ops.derivative import with_backward
from flatten_jax.ops.platform import platform_dependent

# Of x, x^3, ... in the argument of a tanh: the least largest error of x / 2 (1 + tanh) for all x, 3.1e-6 (3.0e-6 in
# exact arithmetic), found by iterated least squares. It grows with x, so that the tanh ends at 1.
_ARGUMENT = (
    0.7978281359850631,
    0.036468791004687924,
    -1.2486166329123746e-4,
    -3.058100098756768e-5,
    1.1190818845902e-6,
)


def gelu(x: jax.Array) -> jax.Array:
    """x / 2 (1 + erf(x / sqrt(2))), in float32 inside; (Hendrycks and Gimpel, arXiv 1606.08415).

    PyTorch's form. `jax.nn.gelu` has erfc, for relative precision of its tail, which costs XLA's CPU code 2.7 times as
    much for nothing that is noticed here. Only x is kept for the backward pass.

    On TPUs erf is most of what an MLP waits for, so in half precision there it is a tanh, which the chip has, of a
    polynomial: 3e-6 off, where rounding x alone moves the result by more (docs/notes_speed.md).
    """
    y = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    return (0.5 * y * _one_and_erf(y, x.dtype)).astype(x.dtype)


def _one_and_erf(y: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """1 + erf(y / sqrt(2)), good enough for a result in `dtype`."""
    if dtype.itemsize > 2:
        return _by_erf(y)
    return platform_dependent(y, tpu=_by_tanh, default=_by_erf)


def _by_erf(y: jax.Array) -> jax.Array:
    return 1 + lax.erf(y * 0.5**0.5)


def _by_tanh(y: jax.Array) -> jax.Array:
    square, factor = y * y, _ARGUMENT[-1]
    for coefficient in reversed(_ARGUMENT[:-1]):
        factor = factor * square + coefficient
    return 1 + jnp.tanh(y * factor)


def _forward(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    return gelu(x), x


def _backward(x: jax.Array, gradient: jax.Array) -> tuple[jax.Array]:
    # Else XLA would find that the forward pass had computed erf(y), and keep that too.
    x = lax.optimization_barrier(x)
    y = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    slope = 0.5 * _one_and_erf(y, x.dtype) + y * jnp.exp(-0.5 * y * y) * (2 * jnp.pi) ** -0.5
    return ((slope * gradient).astype(x.dtype),)


gelu = with_backward(gelu, _forward, _backward)
