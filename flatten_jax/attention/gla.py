"""Gated linear attention of ViG (Liao et al., AAAI 2025, arXiv 2405.18425): a scan of the tokens in both directions."""

from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from flatten_jax.attention.contract import Attention, Origin, Site, heads, on_grid
from flatten_jax.attention.core import Kernel, wide
from flatten_jax.ops.dense import Dense
from flatten_jax.ops.depthwise import depthwise_conv

CHUNK = 16  # tokens whose scores are formed; between chunks only states are handed on
RANK = 16  # of the gates' projection


def gated_recurrence(q: jax.Array, k: jax.Array, v: jax.Array, log_gate: jax.Array) -> jax.Array:
    """o_n = q_n S_n with S_n = diag(exp g_n) S_(n-1) + k_n^T v_n, token after token: the definition.

    Args:
        q, k, log_gate: (B, N, h, d), log_gate at most 0.
        v: (B, N, h, e).

    Returns:
        (B, N, h, e).
    """

    def step(state: jax.Array, token: tuple[jax.Array, ...]) -> tuple[jax.Array, jax.Array]:
        q, k, v, gate = token
        state = jnp.exp(gate)[..., None] * state + k[..., None] * v[..., None, :]
        return state, jnp.einsum("bhd,bhde->bhe", q, state)

    state = jnp.zeros((*k.shape[:1], *k.shape[2:], v.shape[3]), jnp.result_type(k, v))
    tokens = tuple(x.swapaxes(0, 1) for x in (q, k, v, log_gate))
    return jax.lax.scan(step, state, tokens)[1].swapaxes(0, 1)


def gated_attention(q: jax.Array, k: jax.Array, v: jax.Array, log_gate: jax.Array) -> jax.Array:
    """`gated_recurrence` as matrix products over chunks of tokens, in float32.

    Inside a chunk the score of query n and key j <= n is sum_d q_n k_j exp(sum of the gates from j + 1 to n), whose
    exponents are never positive. What earlier chunks left is a product with their state. A loop runs over the states of
    chunks alone.
    """
    tokens, num_heads = q.shape[1:3]
    q, k, v, g = (
        jnp.pad(wide(x), ((0, 0), (0, -tokens % CHUNK), (0, 0), (0, 0)))
        .reshape(x.shape[0], -1, CHUNK, num_heads, x.shape[3])
        .swapaxes(2, 3)  # (B, chunks, h, CHUNK, ·)
        for x in (q, k, v, log_gate)
    )
    total = jnp.cumsum(g, axis=3)  # gates from the start of the chunk up to each token
    causal = jnp.tril(jnp.ones((CHUNK, CHUNK), bool))[..., None]
    since = jnp.where(causal, total[:, :, :, :, None] - total[:, :, :, None], -jnp.inf)
    scores = jnp.einsum("bchnd,bchmd,bchnmd->bchnm", q, k, jnp.exp(since))
    inside = jnp.einsum("bchnm,bchme->bchne", scores, v)

    last = total[:, :, :, -1]
    left = jnp.einsum("bchmd,bchme->bchde", k * jnp.exp(last[:, :, :, None] - total), v)

    def hand_on(state: jax.Array, chunk: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        decay, new = chunk
        return decay[..., None] * state + new, state

    chunks = jnp.exp(last).swapaxes(0, 1), left.swapaxes(0, 1)
    before = jax.lax.scan(hand_on, jnp.zeros_like(left[:, 0]), chunks)[1].swapaxes(0, 1)
    out = inside + jnp.einsum("bchnd,bchde->bchne", q * jnp.exp(total), before)
    return out.swapaxes(2, 3).reshape(out.shape[0], -1, num_heads, v.shape[4])[:, :tokens]


def rms_norm(x: jax.Array, scale: jax.Array, epsilon: float = 1e-6) -> jax.Array:
    """x / sqrt(mean x^2 + epsilon) * scale over the last axis, in float32."""
    x = wide(x)
    return x * jax.lax.rsqrt(jnp.square(x).mean(axis=-1, keepdims=True) + epsilon) * scale


class GLA(Attention):
    """`gated_attention` of the raster forwards and backwards, halved, and a gated mean of it with its own input.

    It makes all layers itself: `in_proj_0`, a 3 x 3 depthwise convolution from which all follows; `qkv_proj` with q and
    k of half the width; `gk_proj_0` and `gk_proj_1`, the log gates of both directions, logsigmoid(.) / 16; `g_proj`,
    whose sigmoid t weighs t norm(o) + (1 - t) norm(input), norms per head (`g_norm`, `l_norm`); `o_proj`.

    Attributes:
        act: silu after the convolution and before `o_proj`, as in ViG-T.
    """

    origin: ClassVar[Origin] = Origin(
        paper="Liao et al., AAAI 2025",
        arxiv="2405.18425",
        code="hustvl/ViG@dfb9d32",
        licence="MIT",
        formula="o_n = q_n S_n, S_n = diag(g_n) S_(n-1) + k_n^T v_n, forwards + backwards, gated",
    )
    streams: ClassVar[str] = ""
    takes_prefix: ClassVar[bool] = False
    takes_reduced: ClassVar[bool] = False

    act: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, site: Site) -> jax.Array:
        channels = x.shape[2]
        if channels % (2 * self.num_heads):
            raise ValueError(f"{channels=} is not divisible by twice num_heads={self.num_heads}")
        kernel = Kernel((3, 3, 1, channels), self.conv_init, name="in_proj_0")()[:, :, 0]
        s = depthwise_conv(on_grid(x, site), kernel).reshape(x.shape)
        s = nn.silu(s) if self.act else s

        def linear(width: int, name: str, bias: bool = False) -> Dense:
            return Dense(width, use_bias=bias, dtype=self.dtype, name=name)

        qkv = linear(2 * channels, "qkv_proj")(s)
        gates = linear(channels, "gk_proj_1", bias=True)(linear(RANK, "gk_proj_0")(s))
        gates = nn.log_sigmoid(wide(gates)) / 16
        half = channels // 2
        q, k, v = (heads(a, self.num_heads) for a in jnp.split(qkv, [half, channels], axis=-1))
        q = wide(q) * q.shape[-1] ** -0.5
        forwards, backwards = (heads(a, self.num_heads) for a in jnp.split(gates, 2, axis=-1))
        back = [jnp.flip(a, axis=1) for a in (q, k, v, backwards)]
        out = (gated_attention(q, k, v, forwards) + jnp.flip(gated_attention(*back), axis=1)) / 2

        normed, own = (
            rms_norm(a, _Scale(out.shape[-1], name=name)()).reshape(x.shape)
            for a, name in ((out, "g_norm"), (heads(s, self.num_heads), "l_norm"))
        )
        share = nn.sigmoid(wide(linear(channels, "g_proj", bias=True)(s)))
        y = normed * share + own * (1 - share)
        return linear(channels, "o_proj")((nn.silu(y) if self.act else y).astype(s.dtype))


class _Scale(nn.Module):
    """The weight of a norm under a module's name."""

    features: int

    @nn.compact
    def __call__(self) -> jax.Array:
        return self.param("scale", nn.initializers.ones, (self.features,))
