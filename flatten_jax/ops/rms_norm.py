"""The norm without a mean, by the root mean square (Zhang and Sennrich, 2019, arXiv 1910.07467)."""

import flax.linen as nn
import jax
import jax.numpy as jnp


def rms_norm(x: jax.Array, scale: jax.Array, epsilon: float) -> jax.Array:
    """x / sqrt(mean x^2 + epsilon) * scale over the last axis, in float32 at least.

    Args:
        x: (..., C).
        scale: (C,).
    """
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    return x * jax.lax.rsqrt(jnp.square(x).mean(axis=-1, keepdims=True) + epsilon) * scale


class RMSNorm(nn.Module):
    """`rms_norm` with a parameter `scale`, (C,), at first ones; its result is float32 at least."""

    epsilon: float = 1e-6

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return rms_norm(x, self.param("scale", nn.initializers.ones, x.shape[-1:]), self.epsilon)
