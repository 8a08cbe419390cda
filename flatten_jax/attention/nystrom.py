"""Nyström attention (Xiong et al., AAAI 2021, arXiv 2102.03902): softmax attention by landmarks and a pseudoinverse."""

from functools import partial
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from flatten_jax.attention.contract import Attention, Origin, Site, add_on_grid, heads
from flatten_jax.attention.core import Kernel, along_sequence, values_on_grid, wide
from flatten_jax.attention.softmax import softmax_attention

INIT_OPTIONS = ("exact", "original")

# The pseudoinverse loses more digits than half precision has.
_product = partial(jnp.matmul, precision="highest")


def nystrom_attention(
    q: jax.Array, k: jax.Array, v: jax.Array, num_landmarks: int, init_option: str = "exact"
) -> jax.Array:
    """F Z (B v) per head: F = softmax(q Lk^T), Z about softmax(Lq Lk^T)^-1, B = softmax(Lq k^T), in float32.

    q and k are scaled by d^-1/4; Lq and Lk are their `segment_means`. With no more keys than landmarks it is softmax
    attention itself.

    Args:
        q: (B, N, h, d).
        k, v: (B, M, h, d).
        num_landmarks: m.
        init_option: of `pseudoinverse`.

    Returns:
        (B, N, h, d).
    """
    if k.shape[1] <= num_landmarks:
        return softmax_attention(q, k, v)
    dtype, scale = v.dtype, q.shape[-1] ** -0.25
    q, k, v = wide(q) * scale, wide(k) * scale, wide(v)
    of_q, of_k = (segment_means(x, num_landmarks) for x in (q, k))
    far, among, near = (
        jax.nn.softmax(jnp.einsum("bnhd,bmhd->bhnm", *pair, precision="highest"))
        for pair in ((q, of_k), (of_q, of_k), (of_q, k))
    )
    gathered = _product(pseudoinverse(among, init_option), jnp.einsum("bhnm,bmhe->bhne", near, v))
    return jnp.einsum("bhnm,bhme->bnhe", far, gathered).astype(dtype)


def segment_means(x: jax.Array, count: int) -> jax.Array:
    """(B, N, h, d) -> (B, count, h, d): means of segments of the sequence, the first ones shorter by one if need be."""
    batch, tokens, *rest = x.shape
    size, longer = divmod(tokens, count)
    shorter = count - longer
    first = x[:, : shorter * size].reshape(batch, shorter, size, *rest).mean(axis=2)
    last = x[:, shorter * size :].reshape(batch, longer, size + 1, *rest).mean(axis=2)
    return jnp.concatenate([first, last], axis=1)


def pseudoinverse(a: jax.Array, init_option: str = "exact") -> jax.Array:
    """About a^-1, by 6 steps Z <- Z (13 I - aZ (15 I - aZ (7 I - aZ))) / 4 from a^T / t; they do not converge.

    Args:
        a: (B, h, m, m), of non-negative entries.
        init_option: what t is, the largest column sum of each head of an example ("exact") or of the whole batch
            ("original").
    """
    columns = a.sum(axis=-2, keepdims=True)
    largest = columns.max(axis=-1 if init_option == "exact" else (0, 1, 2, 3), keepdims=True)
    eye = jnp.eye(a.shape[-1], dtype=a.dtype)

    def step(_: int, z: jax.Array) -> jax.Array:
        az = _product(a, z)
        return _product(z / 4, 13 * eye - _product(az, 15 * eye - _product(az, 7 * eye - az)))

    return jax.lax.fori_loop(0, 6, step, a.mT / largest)


class Nystrom(Attention):
    """`nystrom_attention` + conv(v), a convolution along the flat sequence with one kernel for a head's channels.

    A class token is the first token of the sequence, in its segment and under the convolution, as in the original.
    Beyond the code, keys may be reduced: v is then resampled in two dimensions for the convolution. The official main
    file means to offer both values of `init_option` and always takes "original", by which an example's result depends
    on its batch.

    Attributes:
        num_landmarks: m.
        conv_kernel_size: length of the convolution's kernels, odd; 0: none.
        init_option: how the pseudoinverse starts, "exact" or "original".
    """

    origin: ClassVar[Origin] = Origin(
        paper="Xiong et al., AAAI 2021",
        arxiv="2102.03902",
        code="mlpen/Nystromformer@5689313",
        licence="Apache-2.0",
        formula="softmax(q Lk^T) softmax(Lq Lk^T)^-1 softmax(Lq k^T) v + conv(v), L = means of segments",
    )

    num_landmarks: int = 49
    conv_kernel_size: int = 33
    init_option: str = "exact"

    @nn.compact
    def __call__(self, x: jax.Array, site: Site, q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        if self.num_landmarks < 1:
            raise ValueError(f"num_landmarks={self.num_landmarks} must be at least 1")
        if self.init_option not in INIT_OPTIONS:
            raise ValueError(f"init_option={self.init_option!r} must be one of {', '.join(INIT_OPTIONS)}")
        size = self.conv_kernel_size
        if size and size % 2 == 0:
            raise ValueError(f"conv_kernel_size={size} must be odd, to keep the length of the sequence, or 0 for none")
        q_, k, v_ = (heads(a, self.num_heads) for a in (q, k, v))
        out = nystrom_attention(q_, k, v_, self.num_landmarks, self.init_option).reshape(q.shape)
        if not size:
            return out
        kernel = Kernel((size, 1, 1, self.num_heads), self.conv_init, name="conv")()[:, 0, 0]
        if site.keys == site.grid:
            return out + along_sequence(v_, kernel).reshape(out.shape)
        maps = values_on_grid(v, site)
        own = heads(maps.reshape(out.shape[0], -1, out.shape[2]), self.num_heads)
        return add_on_grid(out, along_sequence(own, kernel).reshape(maps.shape), site)
