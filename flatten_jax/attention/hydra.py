"""Hydra attention (Bolya et al., ECCV 2022 workshops, arXiv 2209.07484): as many heads as channels."""

from collections.abc import Mapping
from typing import ClassVar

import jax
import jax.numpy as jnp

from flatten_jax.attention.contract import Attention, Origin, Site
from flatten_jax.attention.core import unit, wide


def hydra_attention(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    """q_i / |q_i| * sum_j (k_j / |k_j| * v_j), elementwise over the channels; a token of zeros counts as zero.

    Args:
        q: (B, N, C).
        k, v: (B, M, C).

    Returns:
        (B, N, C) in the dtype of v; norms and the sum are in float32.
    """
    gathered = (unit(k) * wide(v)).sum(axis=1, keepdims=True)
    return (unit(q) * gathered).astype(v.dtype)


class Hydra(Attention):
    """`hydra_attention`; no parameters, and no scale: the sum grows with the number of keys.

    Every channel is a head, so `num_heads` has no effect. Beyond the code, whose norms of a token of zeros give NaN,
    such a token counts as zero, with gradient zero.
    """

    origin: ClassVar[Origin] = Origin(
        paper="Bolya et al., ECCV 2022 workshops",
        arxiv="2209.07484",
        code="robflynnyh/hydra-linear-attention@57593d4",
        licence="none",
        formula="q / |q| * sum (k / |k| * v), elementwise",
    )
    takes_mask: ClassVar[bool] = True
    original: ClassVar[Mapping[str, str]] = {"proj": "out"}

    def __call__(self, x: jax.Array, site: Site, q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        k = k if site.mask is None else jnp.where(site.mask[:, :, None], k, 0)
        return hydra_attention(q, k, v)
