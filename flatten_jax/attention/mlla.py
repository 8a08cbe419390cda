"""MLLA (Han et al., NeurIPS 2024, arXiv 2405.16605): linear attention in the place of Mamba's state space model."""

from functools import partial
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from flatten_jax.attention.contract import Attention, Origin, Site, add_on_grid, heads, on_grid
from flatten_jax.attention.core import elu1, linear_attention, rotate
from flatten_jax.ops.dense import Dense
from flatten_jax.ops.depthwise import DepthwiseConv


class MLLACore(Attention):
    """Linear attention of elu + 1 with rotary positions, + LePE, whose values are its input: no v and no projection.

    All C channels turn before they are split into heads: the first half with the row, the second with the column, so
    that with two heads one sees only rows and the other only columns. The normaliser is of what has not turned.
    Parameters: `qk`, one layer for queries and keys; `lepe`, a depthwise convolution of the input, 3 x 3. Beyond the
    official code, grids need not be square, and tokens before the grid do not turn and have no LePE.
    """

    origin: ClassVar[Origin] = Origin(
        paper="Han et al., NeurIPS 2024",
        arxiv="2405.16605",
        code="LeapLabTHU/MLLA@66b6d29",
        licence="MIT",
        formula="R q (sum R k_j^T x_j) / (q . sum k_j) + dwc(x), q = elu(x Wq) + 1, k = elu(x Wk) + 1",
    )
    streams: ClassVar[str] = ""
    takes_reduced: ClassVar[bool] = False

    @nn.compact
    def __call__(self, x: jax.Array, site: Site) -> jax.Array:
        channels = x.shape[2]
        if channels % 4:
            raise ValueError(f"{channels=} must be divisible by 4, for rotary positions of rows and columns")
        q, k = jnp.split(elu1(Dense(2 * channels, dtype=self.dtype, name="qk")(x)), 2, axis=-1)
        theta = 1 / 10000 ** (np.arange(channels // 4) / (channels // 4))
        q, k, turned_q, turned_k, v = (
            heads(a, self.num_heads) for a in (q, k, rotate(q, site, theta), rotate(k, site, theta), x)
        )
        out = linear_attention(q, k, v, self.dtype, (turned_q, turned_k)).reshape(x.shape)
        lepe = DepthwiseConv(channels, 3, self.dtype, self.conv_init, name="lepe")
        return add_on_grid(out, lepe(on_grid(x, site)), site)


class MLLA(Attention):
    """out_proj(attn(silu(dwc(in_proj(x)))) * silu(act_proj(x))): `MLLACore` with the projections of its block.

    What stands where other models have their attention. Parameters: `in_proj`, `act_proj` and `out_proj`, linear;
    `dwc`, a depthwise convolution, 3 x 3; `attn`, those of `MLLACore`. Beyond the official code, tokens before the grid
    pass by the convolution as they are.
    """

    origin: ClassVar[Origin] = MLLACore.origin._replace(
        formula="(core(y) * silu(x Wa)) Wo, y = silu(dwc(x Wi)), core: R q (sum R k_j^T y_j) / (q . sum k_j) + dwc(y)",
    )
    streams: ClassVar[str] = ""
    takes_reduced: ClassVar[bool] = False

    @nn.compact
    def __call__(self, x: jax.Array, site: Site) -> jax.Array:
        channels = x.shape[2]
        dense = partial(Dense, channels, dtype=self.dtype)
        gate = nn.silu(dense(name="act_proj")(x))
        y = dense(name="in_proj")(x)
        mixed = DepthwiseConv(channels, 3, self.dtype, self.conv_init, name="dwc")(on_grid(y, site))
        y = nn.silu(jnp.concatenate([y[:, : site.prefix], mixed.reshape(y.shape[0], -1, channels)], axis=1))
        y = MLLACore(self.num_heads, self.dtype, self.conv_init, name="attn")(y, site)
        return dense(name="out_proj")(y * gate)
