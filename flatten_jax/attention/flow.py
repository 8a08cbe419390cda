"""Flow attention of Flowformer (Wu et al., ICML 2022, arXiv 2202.06258): keys compete, queries are allocated."""

from typing import ClassVar

import jax
import jax.numpy as jnp

from flatten_jax.attention.contract import Attention, Origin, Site, heads
from flatten_jax.attention.core import EPSILON, wide


def flow_attention(q: jax.Array, k: jax.Array, v: jax.Array, outer: float = EPSILON) -> jax.Array:
    """sigmoid(N / M S_i) I_i q_i (sum_j c_j k_j^T v_j), q and k after a sigmoid: keys compete, queries are allocated.

    I_i = 1 / <q_i, sum_j k_j> and O_j = 1 / <k_j, sum_i q_i> conserve what flows in and out, S_i = <q_i, sum_j k_j O_j>
    and T_j = <k_j, sum_i q_i I_i> are the flows after it, c_j = M softmax_j(T) with T clipped to [-1, 1]. <a, b> is
    sum_d (a + 1e-6) (b + 1e-6) + outer. Queries and keys may be of different sequences.

    Args:
        q: (B, N, h, d), before the sigmoid.
        k: (B, M, h, d) likewise.
        v: (B, M, h, e).
        outer: 1e-6 in Flowformer's vision code, 0 in the file that is meant for all tasks.

    Returns:
        (B, N, h, e), in the dtype of v.
    """
    n, m = q.shape[1], k.shape[1]
    # Products of activations need more range than float16 has.
    compute = jnp.float32 if v.dtype == jnp.float16 else v.dtype
    q, k = jax.nn.sigmoid(wide(q)), jax.nn.sigmoid(wide(k))

    def flow(a: jax.Array, mean: jax.Array, count: int) -> jax.Array:
        """<a, count mean> / count: (B, tokens, h, d), (B, h, d) -> (B, tokens, h, 1)."""
        return (jnp.einsum("bnhd,bhd->bnh", a + EPSILON, mean + EPSILON / count) + outer / count)[..., None]

    into, out_of = flow(q, k.mean(axis=1), m), flow(k, q.mean(axis=1), n)
    sink = flow(q, (k / out_of).mean(axis=1) * (m / n), 1)
    source = jnp.clip(flow(k, (q / into).mean(axis=1) * (n / m), 1), -1, 1)
    competing = wide(v) * jax.nn.softmax(source, axis=1)
    context = jnp.einsum("bmhd,bmhe->bhde", k.astype(compute), competing.astype(compute))
    gathered = jnp.einsum("bnhd,bhde->bnhe", (q / into).astype(compute), context)
    return (gathered * jax.nn.sigmoid(sink * (n / m))).astype(v.dtype)


class Flow(Attention):
    """`flow_attention` of q, k and v; no parameters."""

    origin: ClassVar[Origin] = Origin(
        paper="Wu et al., ICML 2022",
        arxiv="2202.06258",
        code="thuml/Flowformer@61f5d8c",
        licence="MIT",
        formula="sigmoid(S_i) q_i (sum softmax_j(T) k_j^T v_j) / (q_i . mean k), q and k sigmoids, S and T their flows",
    )

    def __call__(self, x: jax.Array, site: Site, q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        q, k, v = (heads(a, self.num_heads) for a in (q, k, v))
        return flow_attention(q, k, v).reshape(x.shape[0], q.shape[1], -1)
