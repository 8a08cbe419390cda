"""What the backbones share: patch embedding, MLP, the transformer block, and rates over their depth."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from flatten_jax.attention.contract import Grid, Site, on_grid
from flatten_jax.ops.batch_norm import BatchNorm
from flatten_jax.ops.convolution import Conv
from flatten_jax.ops.cpu import gradient_apart
from flatten_jax.ops.dense import Dense
from flatten_jax.ops.depthwise import DepthwiseConv
from flatten_jax.ops.gelu import gelu
from flatten_jax.ops.initializers import FAN_OUT_CONV, NORMAL, TORCH_CONV, ConvInit, position_embedding
from flatten_jax.ops.norm import LayerNorm


def patch_grid(image_size: tuple[int, int], patch_size: int) -> Grid:
    """(height, width) of the patches of an image; ValueError where a patch does not fit a whole number of times."""
    height, width = image_size
    if height % patch_size or width % patch_size or not (height and width):
        nearest = tuple(max(1, round(side / patch_size)) * patch_size for side in image_size)
        raise ValueError(f"{image_size=} is not divisible by {patch_size=}; the nearest that is: {nearest}")
    return height // patch_size, width // patch_size


class Scope(nn.Module):
    """A level in the names of parameters, around what `make` makes."""

    make: Callable[..., Any]

    @nn.compact
    def __call__(self, *args: Any) -> Any:
        return self.make(*args)


class PatchEmbed(nn.Module):
    """A strided convolution, `proj` or another name, then a LayerNorm `norm` (not in DeiT).

    Attributes:
        embed_dim: channels out.
        patch_size: side of the convolution's kernel.
        stride: its stride; 0 means `patch_size`, patches that do not overlap.
        padding: zeros on every side of the image.
        norm: whether a LayerNorm follows.
        conv_name: CSwin calls it `conv` between its stages.
    """

    embed_dim: int
    patch_size: int
    stride: int = 0
    padding: int = 0
    norm: bool = True
    conv_name: str = "proj"
    conv_init: ConvInit = TORCH_CONV
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """x: (B, height, width, C_in) -> (B, rows, columns, embed_dim)."""
        x = Conv(
            self.embed_dim,
            self.patch_size,
            self.stride or self.patch_size,
            self.padding,
            conv_init=self.conv_init,
            dtype=self.dtype,
            name=self.conv_name,
        )(x)
        return LayerNorm(epsilon=1e-5, dtype=self.dtype, name="norm")(x) if self.norm else x


def conv_norm(
    x: jax.Array,
    train: bool,
    features: int,
    kernel_size: int,
    stride: int = 1,
    *,
    names: tuple[str, str] = ("conv", "norm"),
    use_bias: bool = True,
    conv_init: ConvInit = TORCH_CONV,
    dtype: jnp.dtype | None = None,
) -> jax.Array:
    """A convolution and a BatchNorm as layers of the calling module: (B, height, width, I) -> (B, rows, columns, O).

    Args:
        features: O.
        kernel_size: k, odd; k // 2 zeros are put on every side.
        names: of the two layers.
    """
    conv = Conv(
        features,
        kernel_size,
        stride,
        padding=kernel_size // 2,
        use_bias=use_bias,
        conv_init=conv_init,
        dtype=dtype,
        name=names[0],
    )
    return BatchNorm(dtype=dtype, name=names[1])(conv(x), train)


class Mlp(nn.Module):
    """fc2(gelu(fc1(x))) with the exact (erf) GELU, unless told.

    Attributes:
        hidden_dim: width between the layers.
        local: makes a module that is called with (hidden (B, N, hidden_dim), site) before the GELU, or None.
        activation: instead of the GELU.
        linear_init: initial values of the two layers.
    """

    hidden_dim: int
    local: Callable[..., nn.Module] | None = None
    dtype: jnp.dtype | None = None
    activation: Callable[[jax.Array], jax.Array] = gelu
    linear_init: ConvInit = NORMAL

    @nn.compact
    def __call__(self, x: jax.Array, site: Site) -> jax.Array:
        """(B, N, C) -> (B, N, C)."""
        dense = partial(Dense, dtype=self.dtype, initial=self.linear_init)
        hidden = dense(self.hidden_dim, name="fc1")(x)
        if self.local is not None:
            hidden = self.local(dtype=self.dtype, name="dwconv")(hidden, site)
        return dense(x.shape[-1], name="fc2")(self.activation(hidden))


class DWConv(nn.Module):
    """`local` of PVTv2's MLP and those after it: a 3 x 3 depthwise convolution of tokens, there `mlp.dwconv.dwconv`."""

    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, x: jax.Array, site: Site) -> jax.Array:
        """(B, N, C) at `site` -> (B, N, C)."""
        convolution = DepthwiseConv(x.shape[2], 3, self.dtype, FAN_OUT_CONV, name="dwconv")
        return convolution(on_grid(x, site)).reshape(x.shape)


class Block(nn.Module):
    """Pre-norm transformer block: x + attn(norm1(x)), then x + mlp(norm2(x)), each with drop-path.

    Attributes:
        attention: makes the attention's host, which is called with (x, site).
        mlp_ratio: hidden width of the MLP over C.
        epsilon: of the two LayerNorms.
        own_scope: whether the attention's parameters are under `attn`; else they, and `norm1`, are the block's (CSwin).
        mlp_local: `local` of the MLP (PVTv2).
        gamma: at first, of a learned scale of what the MLP gives (Flowformer); None: there is no such scale.
        mlp_activation: `activation` of the MLP.
    """

    attention: Callable[..., nn.Module]
    mlp_ratio: float = 4.0
    epsilon: float = 1e-6
    own_scope: bool = True
    mlp_local: Callable[..., nn.Module] | None = None
    gamma: float | None = None
    dtype: jnp.dtype | None = None
    mlp_activation: Callable[[jax.Array], jax.Array] = gelu

    @nn.compact
    def __call__(self, x: jax.Array, site: Site, rate: float | jax.Array = 0.0) -> tuple[jax.Array, jax.Array]:
        """x: (B, N, C), rate: of `drop_path` -> (x, what its attention gave), both (B, N, C)."""
        norm = partial(LayerNorm, epsilon=self.epsilon, dtype=self.dtype)

        dropped = partial(dropped_path, self, rate=rate, train=site.train)
        attention = self.attention(name="attn")
        if not self.own_scope:
            nn.share_scope(self, attention)
        x = gradient_apart(x)
        attended = attention(norm(name="norm1")(x) if self.own_scope else x, site)
        x = x + dropped(attended)
        hidden_dim = int(x.shape[-1] * self.mlp_ratio)
        mlp = Mlp(hidden_dim, self.mlp_local, self.dtype, self.mlp_activation, name="mlp")
        fed = mlp(norm(name="norm2")(x), site)
        if self.gamma is not None:
            fed = scaled(self, "gamma", fed, self.gamma)
        return x + dropped(fed), attended


def behind_token(module: nn.Module, x: jax.Array, name: str = "cls_token") -> jax.Array:
    """Tokens x (B, N, C) behind one that all pictures share, a parameter (1, 1, C) of a module: (B, 1 + N, C)."""
    token = module.param(name, position_embedding, (1, 1, x.shape[2])).astype(x.dtype)
    return jnp.concatenate([jnp.broadcast_to(token, (x.shape[0], 1, x.shape[2])), x], axis=1)


def scaled(module: nn.Module, name: str, x: jax.Array, initial: float) -> jax.Array:
    """x (..., C) times a parameter (C,) of a module, at first `initial`."""
    return x * module.param(name, nn.initializers.constant(initial), x.shape[-1:]).astype(x.dtype)


def drop_path(x: jax.Array, rate: float | jax.Array, key: jax.Array) -> jax.Array:
    """Stochastic depth: the residual x (B, ..., C) of an example is dropped with probability `rate`, else scaled up."""
    keep = 1 - rate
    kept = jax.random.bernoulli(key, keep, (x.shape[0], *[1] * (x.ndim - 1)))
    return jnp.where(kept, x / jnp.asarray(keep, x.dtype), 0)


def dropped_path(module: nn.Module, x: jax.Array, rate: float | jax.Array, train: bool) -> jax.Array:
    """`drop_path` of a residual of a module, in training."""
    drops = train and not (isinstance(rate, float) and rate == 0)
    return drop_path(x, rate, module.make_rng("dropout")) if drops else x


def drop_path_rates(drop_path: float, depths: Sequence[int]) -> list[list[float]]:
    """Rates of the blocks of each stage, growing linearly over all of them from 0 to `drop_path`."""
    rates = [drop_path * i / max(1, sum(depths) - 1) for i in range(sum(depths))]
    return [rates[sum(depths[:i]) : sum(depths[: i + 1])] for i in range(len(depths))]
