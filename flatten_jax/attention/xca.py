"""Cross-covariance attention (El-Nouby et al., NeurIPS 2021, arXiv 2106.09681): channels attend to channels."""

from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from flatten_jax.attention.contract import Attention, Origin, Site, heads
from flatten_jax.attention.core import unit, wide

EPSILON = 1e-12  # the least length of a channel


def cross_covariance_attention(q: jax.Array, k: jax.Array, v: jax.Array, temperature: jax.Array) -> jax.Array:
    """v softmax(t unit(q)^T unit(k))^T per head, where unit makes each channel's length over the tokens 1.

    Args:
        q, k, v: (B, N, h, d).
        temperature: t, (h, 1, 1).

    Returns:
        (B, N, h, d) in the dtype of v; norms, scores (d x d) and softmax are in float32.
    """
    q, k = (unit(a, axis=1, floor=EPSILON) for a in (q, k))
    weights = jax.nn.softmax(jnp.einsum("bnhd,bnhe->bhde", q, k) * wide(temperature), axis=-1)
    return jnp.einsum("bhde,bnhe->bnhd", weights.astype(v.dtype), v)


class XCA(Attention):
    """`cross_covariance_attention`, of cost N C d. Parameter: `temperature` (h, 1, 1), at first 1.

    A class token counts as any token. Queries and keys meet token by token, so keys cannot be fewer.
    """

    origin: ClassVar[Origin] = Origin(
        paper="El-Nouby et al., NeurIPS 2021",
        arxiv="2106.09681",
        code="facebookresearch/xcit@82f5291",
        licence="Apache-2.0",
        formula="v softmax(t unit(q)^T unit(k))^T, unit over tokens",
    )
    takes_reduced: ClassVar[bool] = False

    @nn.compact
    def __call__(self, x: jax.Array, site: Site, q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        temperature = self.param("temperature", nn.initializers.ones, (self.num_heads, 1, 1))
        out = cross_covariance_attention(*(heads(a, self.num_heads) for a in (q, k, v)), temperature)
        return out.reshape(v.shape)
