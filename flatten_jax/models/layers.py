"""What the backbones share: patch embedding, MLP, LayerNorm and the transformer block."""

from collections.abc import Callable
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp

from flatten_jax.initializers import linear_kernel, torch_conv_bias, torch_conv_kernel

Grid = tuple[int, int]

# PyTorch's two-pass variance; E[x^2] - E[x]^2 loses digits. Statistics are in float32 whatever the dtype.
LayerNorm = partial(nn.LayerNorm, use_fast_variance=False)


def patch_grid(image_size: tuple[int, int], patch_size: int) -> Grid:
    """(height, width) of the patches of an image; ValueError where a patch does not fit a whole number of times."""
    height, width = image_size
    if height % patch_size or width % patch_size or not (height and width):
        nearest = tuple(max(1, round(side / patch_size)) * patch_size for side in image_size)
        raise ValueError(f"{image_size=} is not divisible by {patch_size=}; the nearest that is: {nearest}")
    return height // patch_size, width // patch_size


class PatchEmbed(nn.Module):
    """Non-overlapping patches to tokens: a strided convolution `proj`, then (PVT) a LayerNorm `norm`."""

    embed_dim: int
    patch_size: int
    norm: bool = False
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        """images: (B, height, width, C_in) -> (B, N, embed_dim), row-major."""
        x = nn.Conv(
            self.embed_dim,
            (self.patch_size, self.patch_size),
            strides=self.patch_size,
            padding="VALID",
            dtype=self.dtype,
            kernel_init=torch_conv_kernel,
            bias_init=torch_conv_bias(self.patch_size**2 * images.shape[-1]),
            name="proj",
        )(images)
        x = x.reshape(x.shape[0], -1, self.embed_dim)
        return LayerNorm(epsilon=1e-5, dtype=self.dtype, name="norm")(x) if self.norm else x


class Mlp(nn.Module):
    """fc2(gelu(fc1(x))) with the exact (erf) GELU."""

    hidden_dim: int
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        dense = partial(nn.Dense, dtype=self.dtype, kernel_init=linear_kernel)
        hidden = nn.gelu(dense(self.hidden_dim, name="fc1")(x), approximate=False)
        return dense(x.shape[-1], name="fc2")(hidden)


class Block(nn.Module):
    """Pre-norm transformer block: x + attn(norm1(x)), then x + mlp(norm2(x)), each with drop-path.

    Attributes:
        attention: makes the attention module when called with name=...; that is called with (x, grid).
        mlp_ratio: hidden width of the MLP over C.
        drop_path: probability with which the residual of an example is dropped (stochastic depth).
        epsilon: of the two LayerNorms.
    """

    attention: Callable[..., nn.Module]
    mlp_ratio: float = 4.0
    drop_path: float = 0.0
    epsilon: float = 1e-6
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, x: jax.Array, grid: Grid, train: bool) -> jax.Array:
        """x: (B, N, C), tokens row-major on `grid` = (height, width) -> (B, N, C)."""
        norm = partial(LayerNorm, epsilon=self.epsilon, dtype=self.dtype)
        # One draw for each example, shared by its tokens and channels.
        drop_path = partial(nn.Dropout, self.drop_path, broadcast_dims=(1, 2), deterministic=not train)
        x = x + drop_path()(self.attention(name="attn")(norm(name="norm1")(x), grid))
        mlp = Mlp(int(x.shape[-1] * self.mlp_ratio), dtype=self.dtype, name="mlp")
        return x + drop_path()(mlp(norm(name="norm2")(x)))


def block_class(remat: bool) -> type[Block]:
    """Block, or Block that keeps nothing for the backward pass and computes it again (rematerialisation)."""
    return nn.remat(Block, static_argnums=(2, 3)) if remat else Block


def drop_path_rates(drop_path: float, depth: int) -> list[float]:
    """Rates of `depth` blocks, growing linearly from 0 to `drop_path`."""
    return [drop_path * i / max(1, depth - 1) for i in range(depth)]


def classifier(num_classes: int, dtype: jnp.dtype | None) -> nn.Dense:
    return nn.Dense(num_classes, dtype=dtype, kernel_init=linear_kernel, name="head")
