"""Initial values as in the release (spec: PyTorch's defaults for convolutions, timm's for linear layers)."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

# Linen traces an initialiser in every call of a layer, to compare shapes: jitted, each is traced once for a shape.
_jit = functools.partial(jax.jit, static_argnums=(1, 2))

# timm's trunc_normal_ cuts at +-2 in absolute terms, a hundred standard deviations: no cut at all.
linear_kernel = position_embedding = _jit(nn.initializers.normal(stddev=0.02))

# uniform(-1/sqrt(fan_in), 1/sqrt(fan_in)): torch.nn.Conv2d.reset_parameters, kaiming_uniform_(a=sqrt(5)).
torch_conv_kernel = _jit(nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform"))


@functools.cache
def torch_conv_bias(fan_in: int) -> nn.initializers.Initializer:
    """torch.nn.Conv2d's bias: uniform(+-1/sqrt(fan_in)), fan_in = kernel height * width * input channels of a group."""

    @_jit
    def init(key: jax.Array, shape: tuple[int, ...], dtype: jnp.dtype = jnp.float32) -> jax.Array:
        return jax.random.uniform(key, shape, dtype, -(fan_in**-0.5), fan_in**-0.5)

    return init


@_jit
def fan_out_conv_kernel(key: jax.Array, shape: tuple[int, ...], dtype: jnp.dtype = jnp.float32) -> jax.Array:
    """PVTv2's kernels (height, width, in, out): normal(0, sqrt(2 / fan_out)), fan_out = height * width * out / groups.

    One input channel means a depthwise convolution, groups = out; nothing else here is grouped.
    """
    height, width, features_in, features_out = shape
    fan_out = height * width * (1 if features_in == 1 else features_out)
    return jax.random.normal(key, shape, dtype) * jnp.asarray((2 / fan_out) ** 0.5, dtype)


class ConvInit(NamedTuple):
    """How a family initialises its convolutions; `bias` makes an initialiser from the fan-in."""

    kernel: nn.initializers.Initializer
    bias: Callable[[int], nn.initializers.Initializer]


TORCH_CONV = ConvInit(torch_conv_kernel, torch_conv_bias)
FAN_OUT_CONV = ConvInit(fan_out_conv_kernel, lambda fan_in: nn.initializers.zeros)
NORMAL = ConvInit(linear_kernel, lambda fan_in: nn.initializers.zeros)  # as linear layers
