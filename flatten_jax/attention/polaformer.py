"""PolaFormer (Meng et al., ICLR 2025, arXiv 2501.15061): linear attention of like and of unlike signs, side by side."""

from collections.abc import Mapping
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from flatten_jax.attention.contract import Attention, Origin, Site, Sized, add_on_grid, heads
from flatten_jax.attention.core import EPSILON, linear_attention, wide
from flatten_jax.attention.focused import stretch_tokens
from flatten_jax.ops.depthwise import DepthwiseConv


def polarity_attention(
    q: jax.Array, k: jax.Array, v: jax.Array, power: jax.Array, dtype: jnp.dtype | None = None
) -> jax.Array:
    """Q (K^T v1) / (Q . sum K) beside Q' (K^T v2) / (Q' . sum K), K = [k+, k-], Q = [q+, q-], Q' = [q-, q+].

    x+ = relu(x)^p, x- = relu(-x)^p. v1, the first half of a head's channels, is gathered by scores of like signs, v2,
    the last half, by those of unlike signs. 1e-6 is added to the means that divide.

    Args:
        q: (B, N, h, d).
        k: (B, M, h, d).
        v: (B, M, h, e), e even.
        power: p, (h, d), at least 1.
        dtype: of the matrix products and the result (default: v's).

    Returns:
        (B, N, h, e).
    """
    d, (same, other) = q.shape[-1], jnp.split(v, 2, axis=-1)
    # Divided by what cancels in the quotient: products of powers would leave the range of float32.
    (q, q_size), (k, k_size) = _scaled(polarised(q, power), axis=3), _scaled(polarised(k, power), axis=(1, 3))
    # Not so small that its square, in the derivative of the quotient, is zero where no query is like a key.
    epsilon = jnp.maximum(EPSILON / q_size / k_size, 1e-15)[..., 0].swapaxes(1, 2)
    likes, unlikes = (
        linear_attention(queries, k, values, dtype, epsilon=epsilon)
        for queries, values in ((q, same), (jnp.roll(q, d, axis=-1), other))
    )
    return jnp.concatenate([likes, unlikes], axis=-1)


def polarised(x: jax.Array, power: jax.Array) -> jax.Array:
    """(B, N, h, d) -> (B, N, h, 2 d): relu(x)^p and relu(-x)^p in float32 at least, p (h, d) at least 1."""
    x = wide(x)
    return jnp.concatenate([nn.relu(x) ** power, nn.relu(-x) ** power], axis=-1)


def _scaled(x: jax.Array, axis: int | tuple[int, ...]) -> tuple[jax.Array, jax.Array]:
    """(x / size, size), size the largest entry along the axes and at least 1."""
    size = jax.lax.stop_gradient(jnp.maximum(x.max(axis=axis, keepdims=True), 1))
    return x / size, size


class PolaFormer(Attention):
    """`polarity_attention` + DWC(v), times a linear gate g.

    A positional encoding is added to the keys, then queries and keys are divided by softplus(scale). Powers are
    1 + alpha sigmoid(power). Parameters: `power` (1, h, 1, d), `scale` (1, 1, C) and `positional_encoding` (1, M, C),
    zero at first, and `dwc`, a depthwise convolution of v with one kernel (k, k, 1, d) for all heads. For it reduced
    values are stretched along the flattened token axis, as in the official code. Beyond that code, tokens before the
    grid have no encoding and are left out of the convolution.

    Attributes:
        alpha: powers lie between 1 and 1 + alpha.
        kernel_size: k of the depthwise convolution, odd.
    """

    origin: ClassVar[Origin] = Origin(
        paper="Meng et al., ICLR 2025",
        arxiv="2501.15061",
        code="ZacharyMeng/PolaFormer@44cdd39",
        licence="MIT",
        formula="([LA(q+ q-, k+ k-) v1, LA(q- q+, k+ k-) v2] + dwc(v)) * g, x+ = relu(x)^p, x- = relu(-x)^p",
    )
    streams: ClassVar[str] = "qkvg"
    sized: ClassVar[Mapping[str, Sized]] = {"positional_encoding": Sized(axis=1)}

    alpha: float = 4.0
    kernel_size: int = 5

    @nn.compact
    def __call__(self, x: jax.Array, site: Site, q: jax.Array, k: jax.Array, v: jax.Array, g: jax.Array) -> jax.Array:
        channels, d = q.shape[2], q.shape[2] // self.num_heads
        if d % 2:
            raise ValueError(f"{d=} channels of a head must be even, one half for each sign: use other num_heads")
        if self.alpha < 0:
            raise ValueError(f"alpha={self.alpha} must be at least 0: powers below 1 have no derivative at 0")
        zeros = nn.initializers.zeros
        encoding = self.param("positional_encoding", zeros, (1, k.shape[1] - site.prefix, channels))
        k = wide(k) + jnp.pad(encoding, ((0, 0), (site.prefix, 0), (0, 0)))
        scale = nn.softplus(self.param("scale", zeros, (1, 1, channels)))
        power = 1 + self.alpha * nn.sigmoid(self.param("power", zeros, (1, self.num_heads, 1, d))[0, :, 0])
        q, k, v_ = (heads(a, self.num_heads) for a in (wide(q) / scale, k / scale, v))
        out = polarity_attention(q, k, v_, power, self.dtype).reshape(g.shape)
        v = v[:, site.prefix :]
        if site.keys != site.grid:
            v = stretch_tokens(v, site.grid[0] * site.grid[1])
        dwc = DepthwiseConv(d, self.kernel_size, self.dtype, self.conv_init, name="dwc")
        return add_on_grid(out, dwc(v.reshape(v.shape[0], *site.grid, channels)), site) * g
