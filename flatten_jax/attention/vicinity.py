"""Vicinity attention of VVT (Sun et al., TPAMI 2023, arXiv 2206.10552): linear attention that prefers what is near."""

from collections.abc import Mapping
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from flatten_jax.attention.contract import Attention, Grid, Origin, Site, heads
from flatten_jax.attention.core import wide
from flatten_jax.ops.dense import Dense

EPSILON = 1e-4  # beside the sum
LOWEST, HIGHEST = 1e-4, 1e4  # the magnitudes that `clamp` leaves


def clamp(x: jax.Array) -> jax.Array:
    """sign(x) min(max(|x|, 1e-4), 1e4): zero stays zero. The derivative is 0 where it acts, and at zero."""
    return jnp.sign(x) * jnp.clip(jnp.abs(x), LOWEST, HIGHEST)


def vicinity_features(x: jax.Array, grid: Grid, use_sum: bool = True) -> jax.Array:
    """x times cosines and sines of positions, so that products of two tokens fall with their distance on the grid.

    With a = pi / 2 row / height and b = pi / 2 column / width, q_i . k_j becomes q_i . k_j times
    cos(a_i - a_j) + cos(b_i - b_j), or with `use_sum=False` times cos(a_i - a_j) cos(b_i - b_j).

    Args:
        x: (B, N, h, d), non-negative.
        grid: of the N tokens, (height, width).
        use_sum: the sum of the two cosines, or their product.

    Returns:
        (B, N, h, 4 d) in float32 at least.
    """
    a, b = (np.pi / 2 * axis.reshape(-1, 1, 1) / side for axis, side in zip(np.indices(grid), grid, strict=True))
    if use_sum:
        weights = np.cos(a), np.sin(a), np.cos(b), np.sin(b)
    else:
        weights = np.cos(a) * np.cos(b), np.cos(a) * np.sin(b), np.sin(a) * np.cos(b), np.sin(a) * np.sin(b)
    x = wide(x)
    return jnp.concatenate([x * weight.astype(x.dtype) for weight in weights], axis=-1)


def vicinity_attention(q: jax.Array, k: jax.Array, v: jax.Array, clip: bool = True) -> jax.Array:
    """q (k^T v) / (q . sum k + 1e-4) per head, by sums in float32, each step of it through `clamp`.

    Args:
        q: (B, N, h, 4 d), features of `vicinity_features`.
        k: (B, M, h, 4 d) likewise.
        v: (B, M, h, d).
        clip: whether the steps are clamped.

    Returns:
        (B, N, h, d) in float32 at least.
    """
    c = clamp if clip else lambda x: x
    q, k, v = (wide(x).swapaxes(1, 2) for x in (q, k, v))
    context = c(jnp.einsum("bhmd,bhme->bhde", k, v))
    z = c(1 / (jnp.einsum("bhnd,bhd->bhn", q, k.sum(axis=2)) + EPSILON))[..., None]
    return c(c(jnp.einsum("bhnd,bhde->bhne", q, context)) * z).swapaxes(1, 2)


class Vicinity(Attention):
    """`vicinity_attention` of relu(q) and relu(k) with positions, `out_proj`, and a squeeze-excite gate made of x.

    The gate of a channel is sigmoid(se_fc_2(relu(se_fc_0(mean of x over tokens)))), without biases. The result is
    y + y * gate. As it follows the projection, the mechanism projects for itself. Angles are of each token's own grid,
    so that other sizes need nothing, and a class token has no place.

    Attributes:
        use_sum: nearness is the sum of the cosines of the two axes; False: their product.
        clip: six steps are clamped to magnitudes of 1e-4 to 1e4, as in the code. That acts on sums over tokens, and
            with large inputs decides much of the result.
        feature_reduction: q, k and v have C / feature_reduction channels; 2 in VVT.
        se_reduction: the gate's hidden layer has C / se_reduction channels; 1 in VVT.
    """

    origin: ClassVar[Origin] = Origin(
        paper="Sun et al., TPAMI 2023",
        arxiv="2206.10552",
        code="OpenNLPLab/Vicinity-Vision-Transformer@2c49e0f",
        licence="Apache-2.0",
        formula="y + y * gate(mean x), y = sum_j w_ij v_j / sum_j w_ij, w = relu(q) . relu(k) (cos rows + cos columns)",
    )
    projects_out: ClassVar[bool] = False
    takes_prefix: ClassVar[bool] = False
    original: ClassVar[Mapping[str, str]] = {"q": "q_proj", "k": "k_proj", "v": "v_proj"}

    use_sum: bool = True
    clip: bool = True
    feature_reduction: int = 1
    se_reduction: int = 2

    def widths(self, channels: int) -> Mapping[str, int]:
        if channels % (self.num_heads * self.feature_reduction):
            raise ValueError(
                f"{channels=} must be divisible by num_heads={self.num_heads} times "
                f"feature_reduction={self.feature_reduction}: reduce less"
            )
        return dict.fromkeys(self.streams, channels // self.feature_reduction)

    @nn.compact
    def __call__(self, x: jax.Array, site: Site, q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        c, channels = clamp if self.clip else lambda x: x, x.shape[2]
        q, k = (
            vicinity_features(heads(jax.nn.relu(a), self.num_heads), grid, self.use_sum)
            for a, grid in ((q, site.grid), (k, site.keys))
        )
        out = vicinity_attention(q, k, heads(v, self.num_heads), self.clip)
        out = out.reshape(*x.shape[:2], -1).astype(v.dtype)
        out = c(wide(Dense(channels, dtype=self.dtype, name="out_proj")(out)))
        squeezed = wide(x).mean(axis=1)
        hidden = Dense(channels // self.se_reduction, use_bias=False, name="se_fc_0")(squeezed)
        gate = jax.nn.sigmoid(Dense(channels, use_bias=False, name="se_fc_2")(jax.nn.relu(hidden)))
        return c(out * (1 + gate[:, None])).astype(v.dtype)
