"""Softmax attention, the baseline that the linear ones are compared with."""

import flax.linen as nn
import jax
import jax.numpy as jnp

Grid = tuple[int, int]


class SoftmaxMixer(nn.Module):
    """softmax(q k^T / sqrt(d)) v per head; no parameters. Scores and softmax are in float32."""

    num_heads: int
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, q: jax.Array, k: jax.Array, v: jax.Array, grid: Grid, key_grid: Grid) -> jax.Array:
        """q: (B, N, C); k, v: (B, M, C) -> (B, N, C). The grids are not needed here."""
        split = (*q.shape[:1], -1, self.num_heads, q.shape[2] // self.num_heads)
        out = jax.nn.dot_product_attention(q.reshape(split), k.reshape(split), v.reshape(split))
        return out.reshape(q.shape)
