"""Vanilla linear attention (Katharopoulos et al., ICML 2020, arXiv 2006.16236, eq. 4 and 7)."""

from typing import ClassVar

import jax

from flatten_jax.attention.contract import Attention, Origin, Site, heads
from flatten_jax.attention.core import EPSILON, elu1, kept, linear_attention, row_normalised

FEATURE_MAPS = {"elu1": elu1, "relu": jax.nn.relu}


class Linear(Attention):
    """Row-normalised phi(q) (phi(k)^T v) per head; no parameters, no scale.

    The epsilon stands beside the sum over keys, as in the original; a query whose features are all zero gets zeros.

    Attributes:
        feature_map: phi, "elu1" (elu(x) + 1) or "relu".
    """

    origin: ClassVar[Origin] = Origin(
        paper="Katharopoulos et al., ICML 2020",
        arxiv="2006.16236",
        code="idiap/fast-transformers@2ad36b9",
        licence="MIT",
        formula="phi(q) (phi(k)^T v) / (phi(q) . sum phi(k)), phi = elu + 1",
    )

    takes_mask: ClassVar[bool] = True
    forms_map: ClassVar[bool] = True

    feature_map: str = "elu1"

    def __call__(self, x: jax.Array, site: Site, q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        if self.feature_map not in FEATURE_MAPS:
            raise ValueError(f"feature_map={self.feature_map!r} must be one of {', '.join(FEATURE_MAPS)}")
        phi = FEATURE_MAPS[self.feature_map]
        q, k, v_ = (heads(a, self.num_heads) for a in (phi(q), phi(k), v))
        k = kept(k, site)
        self.show_map(lambda: row_normalised(q, k), v_)
        return linear_attention(q, k, v_, self.dtype, epsilon=EPSILON / k.shape[1]).reshape(q.shape[0], -1, v.shape[2])
