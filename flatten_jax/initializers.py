"""Initial values as in the release (spec: PyTorch's defaults for convolutions, timm's for linear layers)."""

import flax.linen as nn
import jax
import jax.numpy as jnp

# timm's trunc_normal_ cuts at +-2 in absolute terms, a hundred standard deviations: no cut at all.
linear_kernel = nn.initializers.normal(stddev=0.02)
position_embedding = nn.initializers.normal(stddev=0.02)

# uniform(-1/sqrt(fan_in), 1/sqrt(fan_in)): torch.nn.Conv2d.reset_parameters, kaiming_uniform_(a=sqrt(5)).
torch_conv_kernel = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


def torch_conv_bias(fan_in: int) -> nn.initializers.Initializer:
    """torch.nn.Conv2d's bias: uniform(+-1/sqrt(fan_in)), fan_in = kernel height * width * input channels of a group."""

    def init(key: jax.Array, shape: tuple[int, ...], dtype: jnp.dtype = jnp.float32) -> jax.Array:
        return jax.random.uniform(key, shape, dtype, -(fan_in**-0.5), fan_in**-0.5)

    return init
