"""The LayerNorm of all models."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from flatten_jax.ops.cpu import sum_over_channels, sum_over_tokens
from flatten_jax.ops.derivative import with_backward
from flatten_jax.ops.gpu import not_shared


def layer_norm(x: jax.Array, scale: jax.Array, bias: jax.Array, epsilon: float) -> jax.Array:
    """(x - mean) / sqrt(variance + epsilon) * scale + bias over the last axis, in float32 inside.

    The variance is that of PyTorch, of the centred values; E[x^2] - E[x]^2 loses digits. Kept for the backward pass are
    x, the mean and the deviation.

    Args:
        x: (..., C), any floating dtype.
        scale, bias: (C,).

    Returns:
        (..., C) in the dtype of x.
    """
    return _forward(x, scale, bias, epsilon)[0]


def _forward(x: jax.Array, scale: jax.Array, bias: jax.Array, epsilon: float) -> tuple[jax.Array, tuple]:
    y = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    share = 1 / x.shape[-1]
    mean = sum_over_channels(y, share)
    deviation = jnp.sqrt(sum_over_channels(jnp.square(y - mean), share) + epsilon)
    return ((y - mean) / deviation * scale + bias).astype(x.dtype), (x, scale, bias, mean, deviation)


def _backward(epsilon: float, saved: tuple, gradient: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    x, scale, bias, mean, deviation = saved
    unit, of_y = (not_shared(x).astype(mean.dtype) - mean) / deviation, gradient.astype(mean.dtype)
    along = of_y * unit
    weights = scale / x.shape[-1]
    # Without what would move or stretch all of x, which the norm takes away again.
    of_x = of_y * scale - sum_over_channels(of_y, weights) - unit * sum_over_channels(along, weights)
    of_scale, of_bias = sum_over_tokens(along), sum_over_tokens(of_y)
    return (of_x / deviation).astype(x.dtype), of_scale.astype(scale.dtype), of_bias.astype(bias.dtype)


layer_norm = with_backward(layer_norm, _forward, _backward, nondiff_argnums=(3,))


class LayerNorm(nn.Module):
    """`layer_norm` with parameters `scale` and `bias`, (C,) in float32, at first ones and zeros.

    Attributes:
        epsilon: added to the variance.
        dtype: of the result (None: that of the input and the parameters together).
    """

    epsilon: float = 1e-6
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """x: (..., C) -> the same shape."""
        scale = self.param("scale", nn.initializers.ones, x.shape[-1:])
        bias = self.param("bias", nn.initializers.zeros, x.shape[-1:])
        dtype = jnp.result_type(x, scale) if self.dtype is None else self.dtype
        x = x.astype(jnp.promote_types(x.dtype, dtype))  # what is more precise of the two is rounded once, at the end
        return layer_norm(x, scale, bias, self.epsilon).astype(dtype)
