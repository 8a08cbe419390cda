"""Softmax attention, the baseline that the linear ones are compared with."""

from functools import partial
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

Grid = tuple[int, int]


class SoftmaxMixer(nn.Module):
    """softmax(q k^T / sqrt(d) + bias) v per head; no parameters. Scores and softmax are in float32."""

    takes_bias: ClassVar[bool] = True

    num_heads: int
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(
        self, q: jax.Array, k: jax.Array, v: jax.Array, grid: Grid, key_grid: Grid, bias: jax.Array | None = None
    ) -> jax.Array:
        """Attention of all of N to all of M; the grids are not needed here.

        Args:
            q: (B, N, C).
            k, v: (B, M, C).
            bias: added to the scores, (W, 1 or h, N, M) with W a divisor of B: example b takes bias[b % W], so that the
                windows of a picture can differ and its pictures share.

        Returns:
            (B, N, C).
        """
        split = (q.shape[0], -1, self.num_heads, q.shape[2] // self.num_heads)
        q, k, v = (x.reshape(split) for x in (q, k, v))
        if bias is None:
            out = jax.nn.dot_product_attention(q, k, v)
        else:
            # A batch of batches, so that the bias is broadcast and never repeated in memory.
            q, k, v = (x.reshape(-1, bias.shape[0], *x.shape[1:]) for x in (q, k, v))
            out = jax.vmap(partial(jax.nn.dot_product_attention, bias=bias))(q, k, v)
        return out.reshape(split[0], -1, split[2] * split[3])
