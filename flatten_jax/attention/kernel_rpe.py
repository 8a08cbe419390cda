"""Kernelised attention with relative positions (Luo et al., NeurIPS 2021, arXiv 2106.12566), by Fourier transforms."""

from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from flatten_jax.attention.contract import Attention, Grid, Origin, Site, heads
from flatten_jax.attention.core import elu1, unit, wide
from flatten_jax.ops.initializers import position_embedding


def toeplitz_attention(q: jax.Array, k: jax.Array, v: jax.Array, bias: jax.Array, grid: Grid) -> jax.Array:
    """sum_j e_ij (q_i . k_j) v_j / sum_j e_ij (q_i . k_j) with e = exp(bias of the offset of i and j), per head.

    For every feature the sum over j is a convolution over the grid: O(N log N) each, one feature after the other.

    Args:
        q, k: (B, prefix + N, h, r) non-negative features; e = 1 where a token of the prefix takes part.
        v: (B, prefix + N, h, d).
        bias: ((2 height - 1)(2 width - 1), h), rows as in Swin's table: row offset of query and key, then column.
        grid: (height, width).

    Returns:
        (B, prefix + N, h, d) in float32.
    """
    height, width = grid
    prefix = q.shape[1] - height * width
    q, k, v = (wide(x) for x in (q, k, v))
    highest = jnp.maximum(bias.max(axis=0), 0)  # cancels between above and below, and keeps exp in range
    kernel = jnp.exp(bias - highest).reshape(2 * height - 1, 2 * width - 1, -1)
    ones = jnp.concatenate([v, jnp.ones_like(v[..., :1])], axis=-1)
    size = (2 * height, 2 * width)
    # Offset (0, 0) to index (0, 0): negative offsets wrap around to the end.
    wrapped = jnp.roll(jnp.pad(kernel, ((0, 1), (0, 1), (0, 0))), (1 - height, 1 - width), axis=(0, 1))
    spectrum = jnp.fft.rfft2(wrapped, axes=(0, 1))[..., None]

    def on_grid(x: jax.Array) -> jax.Array:
        return x[:, prefix:].reshape(x.shape[0], height, width, *x.shape[2:])

    @jax.checkpoint
    def add(total: jax.Array, features: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        of_query, of_key = features
        given = on_grid(of_key)[..., None] * on_grid(ones)
        summed = jnp.fft.irfft2(jnp.fft.rfft2(given, size, axes=(1, 2)) * spectrum, size, axes=(1, 2))
        return total + on_grid(of_query)[..., None] * summed[:, :height, :width], None

    total = jnp.zeros((q.shape[0], height, width, *ones.shape[2:]), ones.dtype)
    total, _ = jax.lax.scan(add, total, (jnp.moveaxis(q, 3, 0), jnp.moveaxis(k, 3, 0)))
    total = total.reshape(q.shape[0], height * width, *ones.shape[2:])
    if prefix:
        alone = jnp.exp(-highest)[:, None]
        context = jnp.einsum("bmhr,bmhe->bhre", k[:, :prefix], ones[:, :prefix])
        total = total + jnp.einsum("bnhr,bhre->bnhe", q[:, prefix:], context) * alone
        of_prefix = jnp.einsum("bnhr,bmhr,bmhe->bnhe", q[:, :prefix], k, ones) * alone
        total = jnp.concatenate([of_prefix, total], axis=1)
    return total[..., :-1] / total[..., -1:]


class KernelRPE(Attention):
    """`toeplitz_attention` of positive features; parameter `relative_position_bias_table`, as in Swin.

    With feature_map "prf" the features are positive random ones of directions, exp(w . u - |u|^2 / 2) with u = q / |q|;
    their `projection_matrix` (h, m, d) is state in the collection "constants", drawn with the initial values. There is
    no code by the authors to compare with: the values are held to the formula written out densely.

    Attributes:
        feature_map: "elu1" (elu + 1) or "prf".
        nb_features: m of "prf".
    """

    origin: ClassVar[Origin] = Origin(
        paper="Luo et al., NeurIPS 2021",
        arxiv="2106.12566",
        code="none by the authors was found",
        licence="-",
        formula="sum e_ij (phi(q_i) . phi(k_j)) v_j, row-normalised, e_ij = exp(b of the offset)",
    )
    takes_reduced: ClassVar[bool] = False

    feature_map: str = "elu1"
    nb_features: int = 32

    @nn.compact
    def __call__(self, x: jax.Array, site: Site, q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        if self.feature_map not in ("elu1", "prf"):
            raise ValueError(f"feature_map={self.feature_map!r} must be elu1 or prf")
        height, width = site.grid
        shape = ((2 * height - 1) * (2 * width - 1), self.num_heads)
        bias = self.param("relative_position_bias_table", position_embedding, shape)
        q, k, v_ = (heads(a, self.num_heads) for a in (q, k, v))
        if self.feature_map == "elu1":
            q, k = elu1(q), elu1(k)
        else:
            size = (self.num_heads, self.nb_features, q.shape[-1])
            projection = self.variable(
                "constants", "projection_matrix", lambda: jax.random.normal(self.make_rng("params"), size)
            ).value
            q, k = (positive_random_features(a, projection) for a in (q, k))
        return toeplitz_attention(q, k, v_, bias, site.grid).astype(v.dtype).reshape(v.shape)


def positive_random_features(x: jax.Array, projection: jax.Array) -> jax.Array:
    """exp(w . u - |u|^2 / 2) / sqrt(m) of directions u = x / |x|: (B, N, h, d), (h, m, d) -> (B, N, h, m), float32."""
    u = unit(x)
    exponent = jnp.einsum("bnhd,hmd->bnhm", u, projection) - jnp.square(u).sum(axis=-1, keepdims=True) / 2
    return jnp.exp(exponent) * projection.shape[1] ** -0.5
