"""The BatchNorm of all models (Ioffe and Szegedy, ICML 2015, arXiv 1502.03167), with PyTorch's running statistics."""

import flax.linen as nn
import jax
import jax.numpy as jnp


def batch_norm(
    x: jax.Array, mean: jax.Array, var: jax.Array, scale: jax.Array, bias: jax.Array, epsilon: float = 1e-5
) -> jax.Array:
    """(x - mean) / sqrt(var + epsilon) * scale + bias, in float32 inside.

    Args:
        x: (..., C), any floating dtype.
        mean, var: (C,), of the batch (`batch_statistics`) or running ones.
        scale, bias: (C,).

    Returns:
        (..., C) in the dtype of x.
    """
    y = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    return ((y - mean) * (scale / jnp.sqrt(var + epsilon)) + bias).astype(x.dtype)


def batch_statistics(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Mean and biased variance of (..., C) over all axes but the last, (C,) each, in float32 at least.

    The variance is that of the centred values; E[x^2] - E[x]^2 loses digits. Of a batch that is spread over devices
    both are those of the whole batch, because sums under `jax.jit` are (PyTorch's SyncBatchNorm).
    """
    y = x.reshape(-1, x.shape[-1]).astype(jnp.promote_types(x.dtype, jnp.float32))
    mean = y.mean(axis=0)
    return mean, jnp.square(y - mean).mean(axis=0)


class BatchNorm(nn.Module):
    """`batch_norm` with parameters `scale` and `bias`, (C,) in float32, at first ones and zeros: torch.nn.BatchNorm2d.

    In training the statistics are those of the batch, and the collection "batch_stats" keeps `mean` and `var`, at first
    zeros and ones, for evaluation: new = (1 - momentum) old + momentum batch. The batch is normalised by its biased
    variance and the unbiased one is kept, n / (n - 1) times as large, as in PyTorch. Flax's nn.BatchNorm keeps the
    biased one, and its momentum is 1 - momentum.

    Attributes:
        momentum: weight of the batch in the running statistics.
        epsilon: added to the variance.
        dtype: of the result (None: that of the input and the parameters together).
    """

    momentum: float = 0.1
    epsilon: float = 1e-5
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """x: (..., C) -> the same shape. With `train`, "batch_stats" must be mutable."""
        scale = self.param("scale", nn.initializers.ones, x.shape[-1:])
        bias = self.param("bias", nn.initializers.zeros, x.shape[-1:])
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, x.shape[-1:])
        running_var = self.variable("batch_stats", "var", jnp.ones, x.shape[-1:])
        mean, var = running_mean.value, running_var.value
        if train:
            count = x.size // x.shape[-1]
            if count < 2:
                raise ValueError(f"{x.shape=} must have more than one value a channel: train with a larger batch")
            mean, var = batch_statistics(x)
            if not self.is_initializing():
                for running, here in ((running_mean, mean), (running_var, var * (count / (count - 1)))):
                    old = running.value
                    running.value = ((1 - self.momentum) * old + self.momentum * here).astype(old.dtype)
        dtype = jnp.result_type(x, scale) if self.dtype is None else self.dtype
        x = x.astype(jnp.promote_types(x.dtype, dtype))  # what is more precise of the two is rounded once, at the end
        return batch_norm(x, mean, var, scale, bias, self.epsilon).astype(dtype)
