"""The multi-scale scan of MSVMamba (Shi et al., NeurIPS 2024, arXiv 2405.14174)."""

import math
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from flatten_jax.attention.contract import Attention, Origin, Site, on_grid
from flatten_jax.attention.core import resize, wide
from flatten_jax.ops.dense import Dense
from flatten_jax.ops.depthwise import DepthwiseConv
from flatten_jax.ops.norm import LayerNorm


def selective_scan(u: jax.Array, dt: jax.Array, decay: jax.Array, b: jax.Array, c: jax.Array) -> jax.Array:
    """y_i = c_i s_i, s_i = exp(-dt_i decay) s_(i-1) + dt_i b_i u_i: one state for each channel, in parallel.

    Args:
        u, dt: (B, N, D), dt positive.
        decay: (D,), positive.
        b, c: (B, N, 1).

    Returns:
        (B, N, D).
    """

    def after(first: tuple[jax.Array, jax.Array], then: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        return first[0] * then[0], then[0] * first[1] + then[1]

    return c * jax.lax.associative_scan(after, (jnp.exp(-dt * decay), dt * b * u), axis=1)[1]


class MS2D(Attention):
    """One scan of all tokens row by row, and one of three orders of a grid half as fine, of D = 2 C channels.

    u, z = `in_proj` x. A scan goes over silu(`conv2d` u), 3 x 3. Another goes over silu(`conv2d_b1` u), 7 x 7 of stride
    2, thrice in one sequence: rows backwards, columns, columns backwards; its state runs on from one to the next. Both
    pass `out_norm`. The second is summed over its orders, resized and added to the first. After squeeze and excitation
    (`se`) follows `out_proj`(y silu z). The scans are in float32. Heads have no meaning.
    """

    origin: ClassVar[Origin] = Origin(
        paper="Shi et al., NeurIPS 2024",
        arxiv="2405.14174",
        code="YuHengsss/MSVMamba@57a5ee5",
        licence="none",
        formula="y_i = c_i s_i + D u_i, s_i = exp(dt_i A) s_(i-1) + dt_i b_i u_i, at two scales",
    )
    streams: ClassVar[str] = ""
    takes_prefix: ClassVar[bool] = False
    takes_reduced: ClassVar[bool] = False

    @nn.compact
    def __call__(self, x: jax.Array, site: Site) -> jax.Array:
        batch, tokens, channels = x.shape
        inner, rank = 2 * channels, -(-channels // 16)

        def uniform(bound: float):
            return lambda key, shape: jax.random.uniform(key, shape, jnp.float32, -bound, bound)

        x_proj = self.param("x_proj_weight", uniform(inner**-0.5), (2, rank + 2, inner))
        dt_projs = self.param("dt_projs_weight", uniform(rank**-0.5), (2, inner, rank))
        dt_bias = self.param("dt_projs_bias", _inverse_softplus_of_steps, (2, inner))
        a_logs = self.param("A_logs", nn.initializers.zeros, (2 * inner, 1))
        skips = self.param("Ds", nn.initializers.ones, (2 * inner,))
        norm = LayerNorm(epsilon=1e-5, name="out_norm")

        def scanned(u: jax.Array, which: int) -> jax.Array:
            own = slice(which * inner, (which + 1) * inner)
            r, b, c = jnp.split(jnp.einsum("bnd,rd->bnr", u, x_proj[which]), [rank, rank + 1], axis=-1)
            dt = jax.nn.softplus(jnp.einsum("bnr,dr->bnd", r, dt_projs[which]) + dt_bias[which])
            return norm(selective_scan(u, dt, jnp.exp(a_logs[own, 0]), b, c) + skips[own] * u)

        u, z = jnp.split(Dense(2 * inner, use_bias=False, dtype=self.dtype, name="in_proj")(x), 2, axis=-1)
        u = on_grid(u, site)
        fine = jax.nn.silu(wide(DepthwiseConv(inner, 3, self.dtype, self.conv_init, name="conv2d")(u)))
        half = DepthwiseConv(inner, 7, self.dtype, self.conv_init, name="conv2d_b1")(u)[:, ::2, ::2]
        half = jax.nn.silu(wide(half))
        (height, width), count = half.shape[1:3], half.shape[1] * half.shape[2]
        rows, columns = (a.reshape(batch, count, inner) for a in (half, half.swapaxes(1, 2)))
        orders = scanned(jnp.concatenate([rows[:, ::-1], columns, columns[:, ::-1]], axis=1), 0)
        rows, down, up = (orders[:, i * count : (i + 1) * count] for i in range(3))
        columns = (down + up[:, ::-1]).reshape(batch, width, height, inner).swapaxes(1, 2)
        coarse = rows[:, ::-1].reshape(batch, height, width, inner) + columns

        y = scanned(fine.reshape(batch, tokens, inner), 1) + resize(coarse, site.grid).reshape(batch, tokens, inner)
        y = y * SqueezeExcite(name="se")(y.mean(axis=1, keepdims=True))
        return Dense(channels, use_bias=False, dtype=self.dtype, name="out_proj")(y * jax.nn.silu(wide(z)))


def _inverse_softplus_of_steps(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Such that softplus gives steps log-uniform between 0.001 and 0.1."""
    dt = jnp.exp(jax.random.uniform(key, shape, jnp.float32, math.log(1e-3), math.log(1e-1)))
    return dt + jnp.log(-jnp.expm1(-dt))


class SqueezeExcite(nn.Module):
    """sigmoid(W2 relu(W1 x)), W1 to an eighth of the channels."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        channels = x.shape[-1]
        hidden = jax.nn.relu(Dense(max(1, channels // 8), use_bias=False, name="fc_0")(x))
        return jax.nn.sigmoid(Dense(channels, use_bias=False, name="fc_2")(hidden))
