"""Taylor attention (ViTALiTy, Dass et al., HPCA 2023, arXiv 2211.05109): softmax's first-order expansion."""

from typing import ClassVar

import jax

from flatten_jax.attention.contract import Attention, Origin, Site, heads
from flatten_jax.attention.core import centred_attention


class Taylor(Attention):
    """Weights 1 + q_i . (k_j - mean k) / sqrt(d), row-normalised: `centred_attention`; no parameters.

    This is the paper's formula. The official code computes something else: keys centred over channels instead of
    tokens, no normaliser, and always the sparse quadratic branch that in the paper belongs to training.
    """

    origin: ClassVar[Origin] = Origin(
        paper="Dass et al., HPCA 2023",
        arxiv="2211.05109",
        code="GATECH-EIC/ViTALiTy@4a1173c",
        licence="Apache-2.0",
        formula="mean v + q (k - mean k)^T v / (N sqrt(d))",
    )

    def __call__(self, x: jax.Array, site: Site, q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        q, k, v_ = (heads(a, self.num_heads) for a in (q, k, v))
        return centred_attention(q, k, v_, q.shape[-1] ** -0.5).reshape(x.shape[0], -1, v.shape[2])
