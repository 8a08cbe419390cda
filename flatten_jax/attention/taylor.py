"""Taylor attention of ViTALiTy (Dass et al., HPCA 2023, arXiv 2211.05109): softmax to the first order."""

from typing import ClassVar

import jax

from flatten_jax.attention.contract import Attention, Origin, Site, heads
from flatten_jax.attention.core import centred_attention


class Taylor(Attention):
    """(1 + q . k' / sqrt(d)), row-normalised, times v, with keys k' centred over the tokens; no parameters.

    Centred keys make the normaliser M whatever the query, so this is `centred_attention`, InLine's core. It is the
    formula of the paper. The official code computes something else (it centres over channels, leaves the normaliser
    out and adds a quadratic term); that is not reproduced.
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
        return centred_attention(q, k, v_, q.shape[-1] ** -0.5).reshape(q.shape[0], -1, v.shape[2])
