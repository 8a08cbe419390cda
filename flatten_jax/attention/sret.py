"""Sliced group attention of SReT (Shen et al., ECCV 2022, arXiv 2111.05297)."""

from typing import ClassVar

import jax
import numpy as np

from flatten_jax.attention.contract import Attention, Origin, Site, heads
from flatten_jax.attention.softmax import softmax_attention


class SReT(Attention):
    """Softmax attention within groups of tokens that follow each other row by row.

    The official code permutes tokens at random where `shuffled`, in evaluation too; here the permutation is one for
    each number of tokens, NumPy's RandomState(0), so that answers can be repeated.

    Attributes:
        num_groups: g, the number of groups; 8, 4, 1 in the stages of SReT, and 2, 1, 1 in a block's second application.
        shuffled: tokens are permuted before they are grouped, and put back after.
    """

    origin: ClassVar[Origin] = Origin(
        paper="Shen et al., ECCV 2022",
        arxiv="2111.05297",
        code="szq0214/SReT@c16fe12",
        licence="MIT",
        formula="softmax(q k^T / sqrt(d)) v within g groups of tokens",
    )
    linear_cost: ClassVar[bool] = False
    takes_prefix: ClassVar[bool] = False
    takes_reduced: ClassVar[bool] = False

    num_groups: int = 1
    shuffled: bool = False

    def __call__(self, x: jax.Array, site: Site, q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        tokens, groups = v.shape[1], self.num_groups
        if groups < 1 or tokens % groups:
            raise ValueError(f"num_groups={groups} must divide the {tokens} tokens of a grid {site.grid}")
        order = np.random.RandomState(0).permutation(tokens) if self.shuffled else np.arange(tokens)

        def grouped(a: jax.Array) -> jax.Array:
            a = a[:, order] if self.shuffled else a
            return heads(a.reshape(-1, tokens // groups, a.shape[2]), self.num_heads)

        q, k, v_ = grouped(q), grouped(k), grouped(v)
        out = softmax_attention(q, k, v_).reshape(v.shape)
        return out[:, np.argsort(order)] if self.shuffled else out
