"""Performer (Choromanski et al., ICLR 2021, arXiv 2009.14794): softmax attention by random features, FAVOR+."""

import math
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from flatten_jax.attention.contract import Attention, Origin, Site, heads
from flatten_jax.attention.core import kept, linear_attention, wide


def random_features(
    x: jax.Array, projection: jax.Array, over: tuple[int, ...], mask: jax.Array | None = None
) -> jax.Array:
    """exp(W x - |x|^2 / 2 - top) + 1e-4 with x scaled by d^-1/4, in float32 at least.

    Args:
        x: (B, N, h, d).
        projection: W, (m, d).
        over: axes of the result over which `top` is the largest W x: the last for queries, that and the tokens' for
            keys. No gradient goes through it, as in the original.
        mask: (B, N) bool, the tokens that `top` is looked for among; None: all.

    Returns:
        (B, N, h, m).
    """
    x = wide(x) * x.shape[-1] ** -0.25
    products = jnp.einsum("bnhd,md->bnhm", x, projection, precision="highest")
    among = products if mask is None else jnp.where(mask[:, :, None, None], products, -jnp.inf)
    top = jax.lax.stop_gradient(among.max(axis=over, keepdims=True))
    return jnp.exp(products - (x * x).sum(axis=-1, keepdims=True) / 2 - top) + 1e-4


def relu_features(x: jax.Array, projection: jax.Array) -> jax.Array:
    """relu(W x d^-1/4) + 1e-3: (B, N, h, d), (m, d) -> (B, N, h, m), in float32 at least."""
    return jax.nn.relu(jnp.einsum("bnhd,md->bnhm", wide(x) * x.shape[-1] ** -0.25, projection)) + 1e-3


def orthogonal_rows(key: jax.Array, shape: tuple[int, int], ortho_scaling: int = 0) -> jax.Array:
    """(m, d) in float32: blocks of d orthogonal rows, as long as normal ones, or with `ortho_scaling` 1 sqrt(d)."""
    count, d = shape
    of_lengths, *of_blocks = jax.random.split(key, -(-count // d) + 1)
    blocks = [jnp.linalg.qr(jax.random.normal(k, (d, d), jnp.float32))[0].T for k in of_blocks]
    normal = jax.random.normal(of_lengths, shape, jnp.float32)
    return jnp.concatenate(blocks)[:count] * (d**0.5 if ortho_scaling else jnp.linalg.norm(normal, axis=1)[:, None])


class Performer(Attention):
    """Row-normalised phi(q) (phi(k)^T v) with `random_features` phi of one projection for all heads.

    The projection is no parameter but state: `projection_matrix` (m, d) in the collection "constants", drawn with the
    initial parameters by `orthogonal_rows`. The original's outer model may draw it anew in training; here it stays.
    The original's factor m^-1/2 of the features cancels and is left out.

    Attributes:
        nb_features: m; 0: d log d, rounded down.
        ortho_scaling: 0 or 1, see `orthogonal_rows`.
        generalized_attention: whether the features are `relu_features`.
    """

    origin: ClassVar[Origin] = Origin(
        paper="Choromanski et al., ICLR 2021",
        arxiv="2009.14794",
        code="lucidrains/performer-pytorch@fc8b784",
        licence="MIT",
        formula="phi(q) (phi(k)^T v) / (phi(q) . sum phi(k)), phi(x) = exp(W x - |x|^2 / 2), W random",
    )

    takes_mask: ClassVar[bool] = True

    nb_features: int = 0
    ortho_scaling: int = 0
    generalized_attention: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, site: Site, q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        if self.ortho_scaling not in (0, 1):
            raise ValueError(f"ortho_scaling={self.ortho_scaling} must be 0 or 1")
        d = v.shape[2] // self.num_heads
        shape = (self.nb_features or max(1, int(d * math.log(d))), d)
        if self.nb_features < 0:
            raise ValueError(f"nb_features={self.nb_features} must be at least 1, or 0 for d log d = {shape[0]}")
        projection = self.variable(
            "constants",
            "projection_matrix",
            lambda: orthogonal_rows(self.make_rng("params"), shape, self.ortho_scaling),
        ).value
        q, k, v_ = (heads(a, self.num_heads) for a in (q, k, v))
        if self.generalized_attention:
            q, k = relu_features(q, projection), relu_features(k, projection)
        else:
            q, k = random_features(q, projection, (-1,)), random_features(k, projection, (1, -1), site.mask)
        return linear_attention(q, kept(k, site), v_, self.dtype, epsilon=0.0).reshape(x.shape[0], -1, v.shape[2])
