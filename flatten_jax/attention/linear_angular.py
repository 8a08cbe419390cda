"""Linear-angular attention of Castling-ViT (You et al., CVPR 2023, arXiv 2211.10526)."""

import math
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from flatten_jax.attention.contract import Attention, Origin, Site, heads
from flatten_jax.attention.core import Kernel, along_sequence, unit, unnormalised, values_on_grid, wide

THRESHOLD = 0.02  # of the softmax weights that the sparse part keeps


def linear_angular_attention(
    q: jax.Array, k: jax.Array, v: jax.Array, own: jax.Array, sparse_reg: bool = False
) -> jax.Array:
    """unit(v_i / 2 + unit(q_i) sum_j unit(k_j)^T v_j / pi [+ sparse softmax]) per head.

    1/2 + q . k / pi is the angular kernel 1 - angle / pi to first order. The sum is not divided by the number of keys.

    Args:
        q: (B, N, h, d).
        k, v: (B, M, h, d).
        own: (B, N, h, d), v of the query's own token.
        sparse_reg: with softmax(q k^T / sqrt(d)) v of the weights above 0.02, which is quadratic.

    Returns:
        (B, N, h, d) in float32 at least; rows of length 1, or 0.
    """
    out = wide(own) / 2 + unnormalised(unit(q), unit(k), v) * (k.shape[1] / math.pi)
    if sparse_reg:
        weights = jax.nn.softmax(jnp.einsum("bnhd,bmhd->bhnm", wide(q), wide(k)) * q.shape[-1] ** -0.5, axis=-1)
        out = out + jnp.einsum("bhnm,bmhd->bnhd", jnp.where(weights > THRESHOLD, weights, 0), wide(v))
    return unit(out)


class LinearAngular(Attention):
    """`linear_angular_attention`, + a convolution of v along the flat sequence of tokens (`dconv`), one kernel a head.

    The convolution runs over a class token as over the token before the first. Beyond the code, whose three norms give
    NaN for zeros, those are zero; and keys may be reduced: v is then resampled in two dimensions to be a query's own.

    Attributes:
        res_kernel_size: length of the convolution, odd.
        sparse_reg: with the sparse softmax part, in evaluation too. The paper drops it there.
    """

    origin: ClassVar[Origin] = Origin(
        paper="You et al., CVPR 2023",
        arxiv="2211.10526",
        code="GATECH-EIC/Castling-ViT@c7b75c1",
        licence="Apache-2.0",
        formula="unit(v / 2 + unit(q) (unit(k)^T v) / pi) + conv(v), unit(x) = x / |x|",
    )

    res_kernel_size: int = 9
    sparse_reg: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, site: Site, q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        own = v
        if site.keys != site.grid:
            own = values_on_grid(v, site).reshape(v.shape[0], -1, v.shape[2])
            own = jnp.concatenate([v[:, : site.prefix], own], axis=1)
        q, k, v, own = (heads(a, self.num_heads) for a in (q, k, v, own))
        out = linear_angular_attention(q, k, v, own, self.sparse_reg)
        kernel = Kernel((self.res_kernel_size, 1, 1, self.num_heads), self.conv_init, name="dconv")()
        return (out + along_sequence(own, kernel[:, 0, 0])).astype(v.dtype).reshape(*q.shape[:2], -1)
