"""Test-time training: keys and values train a small network in one step, queries pass through it.

ViT3 (Han et al., CVPR 2026, arXiv 2512.01643), and T5, by which softmax models are made linear (Transformer-to-TTT,
ICML 2026).
"""

from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from flatten_jax.attention.contract import Attention, Origin, Site, add_on_grid, heads, on_grid
from flatten_jax.attention.core import dynamic_depthwise, wide
from flatten_jax.ops.dense import Dense
from flatten_jax.ops.depthwise import DepthwiseConv
from flatten_jax.ops.initializers import linear_kernel


def train_glu(k: jax.Array, v: jax.Array, w1: jax.Array, w2: jax.Array, rate: float) -> tuple[jax.Array, jax.Array]:
    """One step on the loss -rate mean_j v_j . f(k_j) with f(x) = (x w1) * silu(x w2).

    Every column g of the gradients is clipped softly, to g / (|g| + 1).

    Args:
        k, v: (B, M, h, d).
        w1, w2: (h, d, d).

    Returns:
        the new w1, w2, (B, h, d, d) in float32 at least.
    """
    z1, z2, e = *(wide(_apply(k, w)) for w in (w1, w2)), wide(v) * -rate
    g1 = _mean_of_products(k, e * jax.nn.silu(z2))
    g2 = _mean_of_products(k, e * z1 * _silu_slope(z2))
    return wide(w1) - _soft_clip(g1, -2), wide(w2) - _soft_clip(g2, -2)


def train_depthwise(k: jax.Array, v: jax.Array, w: jax.Array, rate: float) -> jax.Array:
    """One step on the loss -rate mean_j v_j . f(k)_j with f a depthwise convolution.

    The gradient g of every filter is clipped softly, to g / (|g| + 1).

    Args:
        k, v: (B, height, width, d).
        w: (s, s, d), s odd.

    Returns:
        (B, s, s, d), a kernel for each example, in float32 at least.
    """
    (height, width), size, margin = k.shape[1:3], w.shape[0], w.shape[0] // 2
    padded = jnp.pad(wide(k), ((0, 0), (margin, margin), (margin, margin), (0, 0)))
    e = wide(v) * (-rate / (height * width))
    g = [(padded[:, i : i + height, j : j + width] * e).sum((1, 2)) for i in range(size) for j in range(size)]
    g = jnp.stack(g, axis=1)
    return wide(w) - _soft_clip(g, 1).reshape(-1, *w.shape)


def train_swiglu(
    k: jax.Array, v: jax.Array, w1: jax.Array, w2: jax.Array, w3: jax.Array, rate: float
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """One step on the loss -rate mean_j v_j . f(k_j), f(x) = (silu(x w1) * (x w2)) w3; nothing is clipped.

    Args:
        k, v: (B, M, h, d).
        w1, w2, w3: (h, d, d).

    Returns:
        the new w1, w2, w3, (B, h, d, d) in float32 at least.
    """
    z1, z2, e = *(wide(_apply(k, w)) for w in (w1, w2)), (wide(v) * -rate).astype(v.dtype)
    back = wide(_apply(e, w3.swapaxes(-1, -2)))
    g1 = _mean_of_products(k, back * z2 * _silu_slope(z1))
    g2 = _mean_of_products(k, back * jax.nn.silu(z1))
    g3 = _mean_of_products((jax.nn.silu(z1) * z2).astype(k.dtype), e)
    return wide(w1) - g1, wide(w2) - g2, wide(w3) - g3


def _apply(x: jax.Array, w: jax.Array) -> jax.Array:
    """(B, N, h, d), (h, d, e) or (B, h, d, e) -> (B, N, h, e) in the dtype of x."""
    return jnp.einsum("bnhd,hde->bnhe" if w.ndim == 3 else "bnhd,bhde->bnhe", x, w.astype(x.dtype))


def _mean_of_products(k: jax.Array, e: jax.Array) -> jax.Array:
    """k^T e / M: (B, M, h, d), (B, M, h, e) -> (B, h, d, e), products in the dtype of k, summed in float32."""
    e = e.astype(k.dtype)
    return jnp.einsum("bmhd,bmhe->bhde", k, e, preferred_element_type=wide(k).dtype) / k.shape[1]


def _soft_clip(g: jax.Array, axis: int) -> jax.Array:
    """g / (|g| + 1) along an axis, with gradient where g is 0."""
    squares = jnp.square(g).sum(axis=axis, keepdims=True)
    positive = squares > 0
    return g / (jnp.where(positive, jnp.sqrt(jnp.where(positive, squares, 1)), 0) + 1)


def _silu_slope(x: jax.Array) -> jax.Array:
    s = jax.nn.sigmoid(x)
    return s * (1 + x * (1 - s))


def _compute(dtype: jnp.dtype) -> jnp.dtype:
    """The dtype of the products: float16 has not the range for products of three activations."""
    return jnp.float32 if dtype == jnp.float16 else dtype


class TTT(Attention):
    """ViT3's block: `train_glu` for every head, and `train_depthwise` of 3 x 3 for one more head on the grid.

    `qkv` makes C + d channels each of queries, keys and values, `proj` takes C + d. Initial weights `w1`, `w2`
    (1, h, d, d) and `w3` (d, 1, 3, 3) are trained. The rate is 1/3, not d^-1/2. Beyond the code, grids need not be
    square, and class tokens take part in the heads but not in the convolution, where their result is 0.
    """

    origin: ClassVar[Origin] = Origin(
        paper="Han et al., CVPR 2026",
        arxiv="2512.01643",
        code="LeapLabTHU/ViTTT@e347758",
        licence="none",
        formula="f(q; w - clip(grad_w loss(f(k; w), v))), f = (x w1) silu(x w2), and a 3x3 convolution likewise",
    )
    streams: ClassVar[str] = ""
    takes_reduced: ClassVar[bool] = False

    @nn.compact
    def __call__(self, x: jax.Array, site: Site) -> jax.Array:
        channels = x.shape[2]
        width = channels // self.num_heads
        streams = Dense(3 * (channels + width), dtype=self.dtype, name="qkv")(x)
        dtype = streams.dtype
        streams = streams.astype(_compute(dtype))
        q, k, v = (heads(a, self.num_heads) for a in jnp.split(streams[..., : 3 * channels], 3, axis=-1))
        w1, w2 = (self.param(name, linear_kernel, (1, self.num_heads, width, width))[0] for name in ("w1", "w2"))
        w1, w2 = train_glu(k, v, w1, w2, rate=1 / 3)
        whole = wide(_apply(q, w1)) * jax.nn.silu(wide(_apply(q, w2)))

        q, k, v = jnp.split(on_grid(streams[..., 3 * channels :], site), 3, axis=-1)
        w3 = self.param("w3", linear_kernel, (width, 1, 3, 3))[:, 0].transpose(1, 2, 0)
        local = dynamic_depthwise(wide(q), train_depthwise(k, v, w3, rate=1 / 3)).reshape(x.shape[0], -1, width)
        local = jnp.pad(local, ((0, 0), (site.prefix, 0), (0, 0)))
        out = jnp.concatenate([whole.reshape(x.shape), local], axis=-1).astype(dtype)
        return Dense(channels, dtype=self.dtype, name="proj")(out)


class T5(Attention):
    """`train_swiglu` for every head, on keys whose mean over tokens is taken away.

    Keys are centred over tokens and divided by sqrt(variance + 1) for each channel: what all keys share, such as the
    bias of their projection, changes nothing. Queries and keys then have a 3 x 3 depthwise convolution of themselves
    added (`q_conv2d`, `k_conv2d`). Initial weights `w1`, `w2`, `w3` (1, h, d, d) are trained; the rate is d^-1/2.
    Beyond the code, grids need not be square, keys may be reduced, and class tokens are left out of the convolutions.
    """

    origin: ClassVar[Origin] = Origin(
        paper="Linearizing Vision Transformer with Test-Time Training, ICML 2026",
        arxiv="",
        code="LeapLabTHU/Transformer-to-TTT@06493e4",
        licence="none",
        formula="f(q; w - grad_w loss(f(k - mean k; w), v)), f = (silu(x w1) (x w2)) w3",
    )

    @nn.compact
    def __call__(self, x: jax.Array, site: Site, q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        dtype, channels, width = v.dtype, v.shape[2], v.shape[2] // self.num_heads
        centred = wide(k) - wide(k).mean(axis=1, keepdims=True)
        k = centred * jax.lax.rsqrt(jnp.square(centred).mean(axis=1, keepdims=True) + 1)
        for name, a, grid in (("q", q, site.grid), ("k", k, site.keys)):
            conv = DepthwiseConv(channels, 3, wide(a).dtype, self.conv_init, name=f"{name}_conv2d")
            a = add_on_grid(wide(a), conv(on_grid(wide(a), site.replace(grid=grid))), site)
            q, k = (a, k) if name == "q" else (q, a)
        q, k, v = (heads(a.astype(_compute(dtype)), self.num_heads) for a in (q, k, v))
        shape = (1, self.num_heads, width, width)
        weights = (self.param(name, linear_kernel, shape)[0] for name in ("w1", "w2", "w3"))
        w1, w2, w3 = train_swiglu(k, v, *weights, rate=width**-0.5)
        hidden = jax.nn.silu(wide(_apply(q, w1))) * wide(_apply(q, w2))
        return _apply(hidden.astype(q.dtype), w3).reshape(v.shape[0], -1, channels).astype(dtype)
