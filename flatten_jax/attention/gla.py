"""Gated linear attention in both directions, of ViG (Liao et al., AAAI 2025, arXiv 2405.18425)."""

from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from flatten_jax.attention.contract import Attention, Origin, Site, heads, on_grid
from flatten_jax.attention.core import Kernel, wide
from flatten_jax.ops.dense import Dense
from flatten_jax.ops.depthwise import depthwise_conv
from flatten_jax.ops.initializers import NORMAL
from flatten_jax.ops.rms_norm import RMSNorm

CHUNK = 8
FLOOR = -15.0  # of log gates, a factor of 3e-7: half a chunk of them leaves exp and its products in range

# torch.nn.init.xavier_uniform_(weight, gain=2**-2.5), of variance gain^2 / mean(fan in, fan out); PyTorch too counts
# all channels into the fan out of a depthwise convolution.
XAVIER = nn.initializers.variance_scaling(2**-5, "fan_avg", "uniform")


def gated_recurrence(q: jax.Array, k: jax.Array, v: jax.Array, log_gates: jax.Array) -> jax.Array:
    """o_n = d^-1/2 q_n S_n, S_n = diag(exp g_n) S_(n-1) + k_n^T v_n, token by token: the definition, slow.

    Args:
        q, k, log_gates: (B, N, h, d); log gates g are negative.
        v: (B, N, h, e).

    Returns:
        (B, N, h, e) in float32 at least.
    """

    def step(state: jax.Array, token: tuple[jax.Array, ...]) -> tuple[jax.Array, jax.Array]:
        q, k, v, g = token
        state = jnp.exp(g)[..., None] * state + k[..., None] * v[..., None, :]
        return state, jnp.einsum("bhd,bhde->bhe", q, state)

    tokens = tuple(wide(a).swapaxes(0, 1) for a in (q, k, v, log_gates))
    state = jnp.zeros((q.shape[0], *q.shape[2:], v.shape[3]), tokens[0].dtype)
    return jax.lax.scan(step, state, tokens)[1].swapaxes(0, 1) * q.shape[-1] ** -0.5


def gated_attention(q: jax.Array, k: jax.Array, v: jax.Array, log_gates: jax.Array) -> jax.Array:
    """`gated_recurrence` by products of matrices: within chunks of tokens scores, between chunks states.

    With b_t the sum of log gates from the start of a chunk to t, the weight of token s <= t of the same chunk is
    (q_t exp(b_t - m)) . (k_s exp(m - b_s)), m being b in the middle of the chunk, so that neither exponential leaves
    float32. Log gates below -15 are taken as -15. Products are in the dtype of v, float16's in float32.

    Args, Returns: those of `gated_recurrence`.
    """
    tokens, compute = v.shape[1], wide(v).dtype if v.dtype == jnp.float16 else v.dtype
    log_gates = jnp.clip(wide(log_gates), FLOOR, 0)

    def chunks(a: jax.Array) -> jax.Array:
        a = jnp.pad(a, ((0, 0), (0, -tokens % CHUNK), (0, 0), (0, 0)))
        return a.reshape(a.shape[0], -1, CHUNK, *a.shape[2:])

    def product(equation: str, *arrays: jax.Array) -> jax.Array:
        return wide(jnp.einsum(equation, *(a.astype(compute) for a in arrays)))

    q, k, v, b = (chunks(a) for a in (wide(q) * q.shape[-1] ** -0.5, wide(k), v, log_gates))
    b = jnp.cumsum(b, axis=2)
    middle, last = b[:, :, CHUNK // 2 - 1, None], b[:, :, -1:]

    scores = product("bcthd,bcshd->bchts", q * jnp.exp(b - middle), k * jnp.exp(middle - b))
    scores = jnp.where(jnp.tril(jnp.ones((CHUNK, CHUNK), bool)), scores, 0)
    inside = product("bchts,bcshe->bcthe", scores, v)

    made = product("bcshd,bcshe->bchde", k * jnp.exp(last - b), v)
    kept = jnp.exp(last[:, :, 0])[..., None]
    _, states = jax.lax.associative_scan(lambda a, b: (a[0] * b[0], b[0] * a[1] + b[1]), (kept, made), axis=1)
    before = jnp.pad(states[:, :-1], ((0, 0), (1, 0), (0, 0), (0, 0), (0, 0)))
    out = inside + product("bcthd,bchde->bcthe", q * jnp.exp(b), before)
    return out.reshape(out.shape[0], -1, *out.shape[3:])[:, :tokens]


class GLA(Attention):
    """The mean of `gated_attention` over tokens row by row and in the opposite order, with gates of their own.

    s = a 3 x 3 depthwise convolution of x without bias (`in_proj_0`). Of s are made q and k, C / 2 channels each, and v
    (`qkv_proj`), the log gates of both directions logsigmoid(`gk_proj_1`(`gk_proj_0` s)) / 16, and t = sigmoid(`g_proj`
    s). The result is RMS(o) t + RMS(s) (1 - t) within heads (`g_norm`, `l_norm`), then `o_proj`. There is no feature
    map and no denominator.

    Attributes:
        use_act_in_conv, use_out_act: a SiLU after the convolution, before `o_proj` (both in ViG-T only).
        gate_low_rank_dim: width between the two layers of the gates.
        gate_logit_normalizer: the 16 above.
        half_in_eval: o is halved again outside of training, as plain ViG does; the norm hides it up to its epsilon.
        xavier_init: which layers start from Xavier's uniform values of gain 2^-2.5: "" none, "conv" the convolution, as
            in ViG-H, or "all", as in plain ViG.
    """

    origin: ClassVar[Origin] = Origin(
        paper="Liao et al., AAAI 2025",
        arxiv="2405.18425",
        code="hustvl/ViG@dfb9d32",
        licence="MIT",
        formula="RMS(o) t + RMS(s) (1 - t), o_n = q_n S_n, S_n = diag(exp g_n) S_(n-1) + k_n^T v_n, both ways",
    )
    streams: ClassVar[str] = ""
    takes_prefix: ClassVar[bool] = False
    takes_reduced: ClassVar[bool] = False

    use_act_in_conv: bool = False
    use_out_act: bool = False
    gate_low_rank_dim: int = 16
    gate_logit_normalizer: float = 16.0
    half_in_eval: bool = False
    xavier_init: str = ""

    @nn.compact
    def __call__(self, x: jax.Array, site: Site) -> jax.Array:
        channels, h = x.shape[2], self.num_heads
        if channels % (2 * h):
            raise ValueError(
                f"{channels=} must be divisible by 2 num_heads={2 * h}: queries and keys have half of them"
            )
        if self.xavier_init not in ("", "conv", "all"):
            raise ValueError(f"xavier_init={self.xavier_init!r} must be '', 'conv' or 'all'")
        (x,) = nn.dtypes.promote_dtype(x, dtype=self.dtype)
        conv_init = self.conv_init._replace(kernel=XAVIER) if self.xavier_init else self.conv_init
        linear_init = NORMAL._replace(kernel=XAVIER) if self.xavier_init == "all" else NORMAL
        kernel = Kernel((3, 3, 1, channels), conv_init, name="in_proj_0")()[:, :, 0]
        s = depthwise_conv(on_grid(x, site), kernel).reshape(x.shape)
        s = jax.nn.silu(s) if self.use_act_in_conv else s

        def dense(features: int, name: str, bias: bool = False, y: jax.Array = s) -> jax.Array:
            return Dense(features, use_bias=bias, dtype=self.dtype, initial=linear_init, name=name)(y)

        half = channels // 2
        qkv = jnp.split(dense(2 * channels, "qkv_proj"), [half, channels], axis=-1)
        logits = dense(channels, "gk_proj_1", True, dense(self.gate_low_rank_dim, "gk_proj_0"))
        gates = jnp.split(jax.nn.log_sigmoid(wide(logits)) / self.gate_logit_normalizer, 2, axis=-1)
        q, k, v, forward, backward = (heads(a, h) for a in (*qkv, *gates))
        back = (jnp.flip(a, axis=1) for a in (q, k, v, backward))
        out = (gated_attention(q, k, v, forward) + jnp.flip(gated_attention(*back), axis=1)) / 2
        out = out / 2 if self.half_in_eval and not site.train else out

        t = jax.nn.sigmoid(wide(heads(dense(channels, "g_proj", True), h)))
        y = RMSNorm(name="g_norm")(out) * t + RMSNorm(name="l_norm")(heads(s, h)) * (1 - t)
        y = (jax.nn.silu(y) if self.use_out_act else y).reshape(x.shape)
        return dense(channels, "o_proj", y=y)
