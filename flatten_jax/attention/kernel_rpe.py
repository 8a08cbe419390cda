"""Kernelised attention with relative positions on the grid, by FFT (Luo et al., NeurIPS 2021, arXiv 2106.12566)."""

from collections.abc import Mapping
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from flatten_jax.attention.contract import Attention, Grid, Origin, Site, Sized, heads
from flatten_jax.attention.core import EPSILON, elu1, unit, wide
from flatten_jax.ops.initializers import position_embedding

FEATURE_MAPS = ("elu1", "prf")


def relative_attention(q: jax.Array, k: jax.Array, v: jax.Array, table: jax.Array, grid: Grid, prefix: int = 0):
    """sum_j E_ij (q_i . k_j) v_j / sum_j E_ij (q_i . k_j) with E_ij = exp(table of the offset i - j) on the grid.

    Sums over keys are convolutions of k^T [v, 1] with E on the grid, one for each pair of channels, so the cost grows
    with N log N. They are done feature by feature, in float32. E is 1 to and from tokens of the prefix.

    Args:
        q, k: (B, prefix + N, h, m) non-negative features.
        v: (B, prefix + N, h, e).
        table: ((2 height - 1) (2 width - 1), h), as Swin's biases: the row of an offset (down, right) of the query from
            the key is (down + height - 1) (2 width - 1) + right + width - 1.
        grid: (height, width).

    Returns:
        (B, prefix + N, h, e) in float32 at least.
    """
    (height, width), count = grid, q.shape[1]
    size = (2 * height, 2 * width)
    table = wide(table).T.reshape(-1, 2 * height - 1, 2 * width - 1)
    largest = jax.lax.stop_gradient(table.max(axis=(1, 2), keepdims=True))  # cancels in the ratio
    offsets = jnp.pad(jnp.exp(table - largest), ((0, 0), (0, 1), (0, 1)))
    spectrum = jnp.fft.rfft2(jnp.roll(offsets, (1 - height, 1 - width), axis=(1, 2)))[:, None]

    q, k, v = (wide(a).transpose(2, 0, 1, 3) for a in (q, k, v))  # (h, B, N, ·)
    values = jnp.concatenate([v, jnp.ones_like(v[..., :1])], axis=-1) / count

    @jax.checkpoint
    def add_feature(total: jax.Array, feature: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        q, k = feature  # (h, B, N)
        sources = (k[..., None] * values[:, :, prefix:]).swapaxes(2, 3)
        maps = jnp.fft.rfft2(sources.reshape(*sources.shape[:3], height, width), size)
        sums = jnp.fft.irfft2(maps * spectrum[:, :, None], size)[..., :height, :width]
        return total + q[..., None] * sums.reshape(sources.shape).swapaxes(2, 3), None

    features = tuple(jnp.moveaxis(a[:, :, prefix:], -1, 0) for a in (q, k))
    out, _ = jax.lax.scan(add_feature, jnp.zeros_like(values[:, :, prefix:]), features)
    if prefix:
        share = jnp.exp(-largest)[..., None]
        of_prefix = jnp.einsum("hbmf,hbme->hbfe", k[:, :, :prefix], values[:, :, :prefix])
        of_all = jnp.einsum("hbmf,hbme->hbfe", k, values)
        out = out + share * jnp.einsum("hbnf,hbfe->hbne", q[:, :, prefix:], of_prefix)
        out = jnp.concatenate([jnp.einsum("hbnf,hbfe->hbne", q[:, :, :prefix], of_all), out], axis=2)
    # Transforms round: what is below is noise around 0.
    return (out[..., :-1] / jnp.maximum(out[..., -1:], EPSILON)).transpose(1, 2, 0, 3)


class KernelRPE(Attention):
    """`relative_attention` with phi(q), phi(k) and a table `relative_position_bias_table` for each head.

    No code of the authors was found: this is the paper's formula. It costs more than softmax attention below some
    thousands of tokens. The table is resampled for another grid as Swin's is.

    Attributes:
        feature_map: phi, "elu1" (elu(x) + 1), or "prf": exp(w . u - 1/2) with u = x / |x|, w normal vectors, kept as
            they are drawn with the initial parameters (`projection_matrix`, (h, m, d), in the collection "constants").
        nb_features: m of "prf".
    """

    origin: ClassVar[Origin] = Origin(
        paper="Luo et al., NeurIPS 2021",
        arxiv="2106.12566",
        code="none by the authors was found",
        licence="none",
        formula="sum_j e^b(i - j) (phi(q_i) . phi(k_j)) v_j / sum_j e^b(i - j) (phi(q_i) . phi(k_j))",
    )
    takes_reduced: ClassVar[bool] = False
    sized: ClassVar[Mapping[str, Sized]] = {"relative_position_bias_table": Sized(axis=0, along="offsets")}

    feature_map: str = "elu1"
    nb_features: int = 32

    @nn.compact
    def __call__(self, x: jax.Array, site: Site, q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        if self.feature_map not in FEATURE_MAPS:
            raise ValueError(f"feature_map={self.feature_map!r} must be one of {', '.join(FEATURE_MAPS)}")
        height, width = site.grid
        shape = ((2 * height - 1) * (2 * width - 1), self.num_heads)
        table = self.param("relative_position_bias_table", position_embedding, shape)
        q, k, v_ = (heads(a, self.num_heads) for a in (q, k, v))
        if self.feature_map == "elu1":
            q, k = elu1(q), elu1(k)
        else:
            shape = (self.num_heads, self.nb_features, q.shape[-1])
            projection = self.variable(
                "constants", "projection_matrix", lambda: jax.random.normal(self.make_rng("params"), shape)
            ).value
            q, k = (jnp.exp(jnp.einsum("bnhd,hmd->bnhm", unit(a), projection) - 0.5) for a in (q, k))
        return relative_attention(q, k, v_, table, site.grid, site.prefix).reshape(v.shape).astype(v.dtype)
