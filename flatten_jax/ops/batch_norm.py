"""Batch normalisation."""

import flax.linen as nn
import jax
import jax.numpy as jnp


class BatchNorm(nn.Module):
    """(x - mean) / sqrt(var + epsilon) * scale + bias for each channel, over all other axes, in float32 inside.

    Parameters `scale`, `bias`; running `mean`, `var` in the collection "batch_stats", used outside of training.

    Attributes:
        epsilon: added to the variance.
        momentum: share of the running statistics that stays in a step (PyTorch's 0.1 is 0.9 here).
        dtype: of the result (None: that of the input and the parameters together).
    """

    epsilon: float = 1e-5
    momentum: float = 0.9
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """x: (..., C) -> the same shape."""
        channels = x.shape[-1:]
        scale = self.param("scale", nn.initializers.ones, channels)
        bias = self.param("bias", nn.initializers.zeros, channels)
        mean = self.variable("batch_stats", "mean", jnp.zeros, channels)
        var = self.variable("batch_stats", "var", jnp.ones, channels)
        dtype = jnp.result_type(x, scale) if self.dtype is None else self.dtype
        y = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        if train:
            axes = tuple(range(x.ndim - 1))
            centre, spread, count = y.mean(axes), y.var(axes), y.size // y.shape[-1]
            if not self.is_initializing():
                keep = self.momentum
                mean.value = keep * mean.value + (1 - keep) * centre
                var.value = keep * var.value + (1 - keep) * spread * count / max(count - 1, 1)
        else:
            centre, spread = mean.value, var.value
        return ((y - centre) * jax.lax.rsqrt(spread + self.epsilon) * scale + bias).astype(dtype)
