"""Softmax attention, the baseline that the linear ones are compared with."""

from functools import partial
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from flatten_jax.attention.contract import Attention, Origin, Site, heads
from flatten_jax.attention.core import wide
from flatten_jax.ops.platform import kernel_mesh, with_tpu_kernel

ABSENT = -1e30  # score of a token that is not there


def softmax_attention(
    q: jax.Array, k: jax.Array, v: jax.Array, bias: jax.Array | None = None, scale: float | None = None
) -> jax.Array:
    """softmax(scale q k^T + bias) v per head; scores and softmax are in float32.

    On TPUs it is one kernel (`window_kernel`) within `ops.platform.tpu_kernels`, where that is for these sizes.

    Args:
        q: (B, N, h, d).
        k, v: (B, M, h, d).
        bias: (W, 1 or h, N, M) with W a divisor of B: example b takes bias[b % W], and no copy of it is made.
        scale: default d^-1/2.

    Returns:
        (B, N, h, d).
    """
    if (mesh := kernel_mesh()) is not None:
        from flatten_jax.attention import window_kernel  # Pallas takes a while to import

        if window_kernel.takes(q, k, v, bias, mesh):
            bias = jnp.zeros((1, q.shape[2], *2 * q.shape[1:2])) if bias is None else bias
            return _by_kernel(q, k, v, bias, q.shape[-1] ** -0.5 if scale is None else scale, mesh)
    return _plain(q, k, v, bias, scale)


def _plain(
    q: jax.Array, k: jax.Array, v: jax.Array, bias: jax.Array | None = None, scale: float | None = None
) -> jax.Array:
    if v.dtype == jnp.float16:  # whose gradient XLA's CPU compiler refuses, and in whose range scores need not lie
        return _plain(*(x.astype(jnp.float32) for x in (q, k, v)), bias, scale).astype(v.dtype)
    if bias is None:
        return jax.nn.dot_product_attention(q, k, v, scale=scale)
    if len(bias) == 1:
        return jax.nn.dot_product_attention(q, k, v, bias, scale=scale)
    # A batch of batches, so that the bias is broadcast and never repeated in memory.
    parts = (x.reshape(-1, bias.shape[0], *x.shape[1:]) for x in (q, k, v))
    return jax.vmap(partial(jax.nn.dot_product_attention, bias=bias, scale=scale))(*parts).reshape(q.shape)


def _forward(*args: Any) -> jax.Array:
    from flatten_jax.attention import window_kernel

    return window_kernel.forward(*args)


def _backward(*args: Any) -> tuple[jax.Array, ...]:
    from flatten_jax.attention import window_kernel

    return window_kernel.backward(*args)


_by_kernel = with_tpu_kernel(_plain, _forward, _backward, arrays=4, facts=2)


def softmax_map(q: jax.Array, k: jax.Array, bias: jax.Array | None = None, scale: float | None = None) -> jax.Array:
    """The rows of `softmax_attention`, with the same arguments: (B, h, N, M), in float32 at least."""
    scores = jnp.einsum("bnhd,bmhd->bhnm", wide(q), wide(k)) * (q.shape[-1] ** -0.5 if scale is None else scale)
    if bias is not None:
        scores = (scores.reshape(-1, len(bias), *scores.shape[1:]) + bias).reshape(scores.shape)
    return jax.nn.softmax(scores, axis=-1)


class Softmax(Attention):
    """softmax(q k^T / sqrt(d) + bias) v per head; no parameters."""

    origin: ClassVar[Origin] = Origin(
        paper="Vaswani et al., NeurIPS 2017",
        arxiv="1706.03762",
        code="the hosts' own",
        licence="-",
        formula="softmax(q k^T / sqrt(d)) v",
    )
    takes_bias: ClassVar[bool] = True
    takes_mask: ClassVar[bool] = True
    forms_map: ClassVar[bool] = True
    linear_cost: ClassVar[bool] = False

    def __call__(self, x: jax.Array, site: Site, q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        bias = site.bias
        if site.mask is not None:
            bias = jnp.where(site.mask[:, None, None], 0 if bias is None else bias, ABSENT)
        of_heads = [heads(a, self.num_heads) for a in (q, k, v)]
        self.show_map(lambda: softmax_map(*of_heads[:2], bias), of_heads[2])
        return softmax_attention(*of_heads, bias).reshape(q.shape)
