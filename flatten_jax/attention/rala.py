"""RALA (Fan et al., CVPR 2025, arXiv 2411.07635) and MALA (Fan et al., ICCV 2025, arXiv 2507.00698), of one form.

And that form around softmax, which both papers' models have in their last two stages.
"""

from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from flatten_jax.attention.contract import Attention, Origin, Site, add_on_grid, heads
from flatten_jax.attention.core import EPSILON, elu1, linear_attention, rotate, values_on_grid, wide
from flatten_jax.attention.softmax import softmax_attention
from flatten_jax.ops.depthwise import DepthwiseConv


def augmented_keys(q: jax.Array, k: jax.Array) -> jax.Array:
    """M softmax_j(mean_i q_i . k_j / sqrt(d)) k_j: weights that sum to M raise the rank of k^T v (RALA, eq. 8).

    Args:
        q: (B, N, h, d).
        k: (B, M, h, d).

    Returns:
        (B, M, h, d), in float32 at least.
    """
    q, k = wide(q), wide(k)
    scores = jnp.einsum("bhd,bmhd->bmh", q.mean(axis=1), k) * q.shape[-1] ** -0.5
    return k * (k.shape[1] * jax.nn.softmax(scores, axis=1))[..., None]


def magnitude_attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    rotated: tuple[jax.Array, jax.Array],
    dtype: jnp.dtype | None = None,
) -> jax.Array:
    """(1 + 1 / (z + 1e-6)) d^-1/2 q' k'^T v / M - z mean v, z = d^-1/2 q . mean k: scores that grow with |q| (MALA).

    With a the row-normalised attention of the same features this is (1 + 1e-6) a + z (a - mean v): no quotient is
    multiplied by what it was divided by, and what all values share is subtracted before it is stretched.

    Args:
        q: (B, N, h, d) non-negative features.
        k: (B, M, h, d) likewise.
        v: (B, M, h, e).
        rotated: q' and k', q and k with rotary positions.
        dtype: of the two matrix products and the result (default: v's).

    Returns:
        (B, N, h, e).
    """
    dtype, scale = jnp.dtype(dtype or v.dtype), q.shape[-1] ** -0.5
    z = jnp.einsum("bnhd,bhd->bnh", wide(q), wide(k).mean(axis=1))[..., None] * scale
    attended = wide(linear_attention(q, k, v, dtype, rotated, EPSILON / scale))
    return ((1 + EPSILON) * attended + z * (attended - wide(v).mean(axis=1, keepdims=True))).astype(dtype)


class RALA(Attention):
    """Linear attention of elu + 1 with keys weighted by `augmented_keys` and rotary positions, + LePE, times a gate o.

    Queries and keys turn for the products and not for the normaliser, so rows do not sum to one. The gate is linear.
    Parameters: `lepe`, a depthwise convolution of v, 5 x 5. Beyond the official code, tokens before the grid do not
    turn and have no LePE; reduced keys turn by their own rows and columns, their v is resampled for LePE.
    """

    origin: ClassVar[Origin] = Origin(
        paper="Fan et al., CVPR 2025",
        arxiv="2411.07635",
        code="qhfan/RALA@a86314f",
        licence="none",
        formula="(R q (sum R k_j^T v_j) / (q . sum k_j) + dwc(v)) * o, k_j = M softmax_j(mean q . k_j / sqrt(d)) k_j",
    )
    streams: ClassVar[str] = "qkvo"
    pointwise: ClassVar[tuple[str, ...]] = ("qkvo", "proj")

    @nn.compact
    def __call__(self, x: jax.Array, site: Site, q: jax.Array, k: jax.Array, v: jax.Array, o: jax.Array) -> jax.Array:
        lepe = DepthwiseConv(v.shape[2], 5, self.dtype, self.conv_init, name="lepe")(values_on_grid(v, site))
        q, k, v = (heads(a, self.num_heads) for a in (q, k, v))
        return add_on_grid(self.core(site, q, k, v).reshape(o.shape), lepe, site) * o

    def core(self, site: Site, q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        """The attention of queries, keys and values in heads."""
        q, k = elu1(q), elu1(k)
        k = augmented_keys(q, k)
        return linear_attention(q, k, v, self.dtype, rotated(q, k, site))


class MALA(RALA):
    """RALA's form around `magnitude_attention`: keys as they are, scores that grow with the length of the query.

    Without rotation rows would sum to one; weights may be negative. Streams, parameters and what goes beyond the
    official code are those of RALA.
    """

    origin: ClassVar[Origin] = Origin(
        paper="Fan et al., ICCV 2025",
        arxiv="2507.00698",
        code="qhfan/MALA@7114e63",
        licence="none",
        formula="((1 + 1 / z) R q sum R k_j^T v_j / (M sqrt(d)) - z mean v + dwc(v)) * o, z = q . mean k / sqrt(d)",
    )

    def core(self, site: Site, q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        q, k = elu1(q), elu1(k)
        return magnitude_attention(q, k, v, rotated(q, k, site), self.dtype)


class RALASoftmax(RALA):
    """RALA's form around softmax attention, with rotary positions, LePE and gate: RAVLT's and MAViT's last two stages.

    Streams, parameters and what goes beyond the official code are those of RALA; `site.bias` is added to the scores.
    """

    origin: ClassVar[Origin] = RALA.origin._replace(formula="(softmax(R q (R k)^T / sqrt(d)) v + dwc(v)) * o")
    takes_bias: ClassVar[bool] = True
    linear_cost: ClassVar[bool] = False

    def core(self, site: Site, q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        q, k = (x.astype(v.dtype) for x in rotated(wide(q), wide(k), site))
        return softmax_attention(q, k, v, site.bias)


def rotated(q: jax.Array, k: jax.Array, site: Site) -> tuple[jax.Array, jax.Array]:
    """q and k (B, tokens, h, d) turned in every head, by 10000^(-m / (d / 4 - 1)) a row or column for pair m."""
    d = q.shape[-1]
    if d % 4:
        raise ValueError(f"{d=} channels of a head must be divisible by 4, for rotary positions: use other num_heads")
    theta = 1 / 10000 ** np.linspace(0, 1, d // 4)
    return rotate(q, site, theta), rotate(k, site, theta, site.keys)
