"""cosFormer attention (Qin et al., ICLR 2022, arXiv 2202.08791): linear attention that prefers what is near in line."""

from collections.abc import Mapping
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from flatten_jax.attention.contract import Attention, Origin, Site, heads
from flatten_jax.attention.core import clamped_attention, wide

LOWEST = 1e-6  # of the normaliser, a sum over keys


def cosformer_features(x: jax.Array, longest: int) -> jax.Array:
    """[x sin t, x cos t] with t_i = pi / 2 (i + 1) / longest, so that products fall with cos(t_i - t_j).

    Args:
        x: (B, N, h, d), non-negative.
        longest: max(N, M), the larger number of tokens of queries and keys.

    Returns:
        (B, N, h, 2 d) in float32 at least.
    """
    x = wide(x)
    t = np.pi / 2 * np.arange(1, x.shape[1] + 1)[:, None, None] / longest
    return jnp.concatenate([x * np.sin(t).astype(x.dtype), x * np.cos(t).astype(x.dtype)], axis=-1)


class CosFormer(Attention):
    """Q (K^T v) / max(Q . sum K, 1e-6) with Q, K the `cosformer_features` of relu(q), relu(k); no parameters.

    Positions count along the flat sequence, a class token as its first, and reduced keys by their own numbers, as in
    the original's attention between two sequences: two tokens one above the other are a row apart.
    """

    origin: ClassVar[Origin] = Origin(
        paper="Qin et al., ICLR 2022",
        arxiv="2202.08791",
        code="OpenNLPLab/cosFormer@8e12da1",
        licence="Apache-2.0",
        formula="sum_j w_ij v_j / sum_j w_ij, w = relu(q_i) . relu(k_j) cos(pi / 2 (i - j) / N)",
    )
    original: ClassVar[Mapping[str, str]] = {"q": "q_proj", "k": "k_proj", "v": "v_proj", "proj": "out_proj"}

    def __call__(self, x: jax.Array, site: Site, q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        longest = max(q.shape[1], k.shape[1])
        features = (cosformer_features(heads(jax.nn.relu(a), self.num_heads), longest) for a in (q, k))
        out = clamped_attention(*features, heads(v, self.num_heads), LOWEST)
        return out.astype(v.dtype).reshape(*q.shape[:2], -1)
