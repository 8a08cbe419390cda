"""Agent attention (Han et al., ECCV 2024, arXiv 2312.08874): a few pooled queries stand between queries and keys."""

import math
from collections.abc import Mapping
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from flatten_jax.attention.contract import Attention, Grid, Origin, Site, Sized, add_on_grid, heads, on_grid
from flatten_jax.attention.core import adaptive_pool, values_on_grid
from flatten_jax.attention.softmax import softmax_attention
from flatten_jax.ops.depthwise import DepthwiseConv
from flatten_jax.ops.initializers import position_embedding

BIAS_SIDE = 7  # of the square on which the first part of a bias is learned


def agent_attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    agents: jax.Array,
    to_keys: jax.Array | None = None,
    to_queries: jax.Array | None = None,
) -> jax.Array:
    """softmax(q a^T / sqrt(d) + b2) softmax(a k^T / sqrt(d) + b1) v per head: agents gather, and queries from them.

    Args:
        q: (B, N, h, d).
        k, v: (B, M, h, d).
        agents: a, (B, n, h, d).
        to_keys: b1, (h, n, M), or None.
        to_queries: b2, (h, N, n), or None.

    Returns:
        (B, N, h, d).
    """
    b1, b2 = (None if bias is None else bias[None] for bias in (to_keys, to_queries))
    return softmax_attention(q, agents, softmax_attention(agents, k, v, b1), b2)


class Agent(Attention):
    """`agent_attention` with `agent_num` mean-pooled queries as agents and learned biases, + DWC(v).

    Either bias is the sum of a 7 x 7 map that is interpolated to the grid, of rows and of columns. Parameters, h heads
    and n agents: of b1 `an_bias` (h, n, 7, 7), `ah_bias` (1, h, n, height, 1) and `aw_bias` (1, h, n, 1, width) of the
    keys, of b2 `na_bias` (h, n, 7, 7), `ha_bias` (1, h, height, 1, n) and `wa_bias` (1, h, 1, width, n) of the queries;
    for tokens before the grid `ac_bias` (1, h, n, prefix) and `ca_bias` (1, h, prefix, n); `dwc`, 3 x 3. Tokens before
    the grid make no agents and are left out of the convolution. Beyond the official code, grids need not be square, and
    there may be more than one token before them.

    Attributes:
        agent_num: n, a square, such as 9, 16 or 49.
        use_dwc: with the convolution; CSwin's models have none, their LePE stands in its place.
    """

    origin: ClassVar[Origin] = Origin(
        paper="Han et al., ECCV 2024",
        arxiv="2312.08874",
        code="LeapLabTHU/Agent-Attention@207ce3e",
        licence="none",
        formula="softmax(q a^T / sqrt(d) + b2) softmax(a k^T / sqrt(d) + b1) v + dwc(v), a = pool(q)",
    )
    sized: ClassVar[Mapping[str, Sized]] = {
        "ah_bias": Sized(3, "rows", "keys"),
        "aw_bias": Sized(4, "columns", "keys"),
        "ha_bias": Sized(2, "rows", "queries"),
        "wa_bias": Sized(3, "columns", "queries"),
    }

    agent_num: int = 49
    use_dwc: bool = True

    @nn.compact
    def __call__(self, x: jax.Array, site: Site, q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        side = math.isqrt(max(self.agent_num, 0))
        if side < 1 or side**2 != self.agent_num:
            raise ValueError(f"agent_num={self.agent_num} must be a square, 1, 4, 9, ...: agents are pooled on a grid")
        agents = adaptive_pool(on_grid(q, site), (side, side)).reshape(q.shape[0], -1, q.shape[2])
        out = agent_attention(
            *(heads(a, self.num_heads) for a in (q, k, v, agents)),
            self.bias(("an_bias", "ah_bias", "aw_bias", "ac_bias"), site.keys, site.prefix),
            self.bias(("na_bias", "ha_bias", "wa_bias", "ca_bias"), site.grid, site.prefix, turned=True),
        ).reshape(q.shape)
        if not self.use_dwc:
            return out
        dwc = DepthwiseConv(v.shape[2], 3, self.dtype, self.conv_init, name="dwc")
        return add_on_grid(out, dwc(values_on_grid(v, site)), site)

    def bias(self, names: tuple[str, ...], grid: Grid, prefix: int, turned: bool = False) -> jax.Array:
        """(h, n, prefix + tokens) of a map, rows, columns and tokens before the grid; turned: the last two swapped."""
        h, n, (height, width) = self.num_heads, self.agent_num, grid
        shapes = [(1, h, n, height, 1), (1, h, n, 1, width), (1, h, n, prefix)]
        if turned:
            shapes = [(1, h, height, 1, n), (1, h, 1, width, n), (1, h, prefix, n)]
        square = self.param(names[0], position_embedding, (h, n, BIAS_SIDE, BIAS_SIDE))
        square = jax.image.resize(square, (h, n, height, width), "linear", antialias=False)
        rows, columns = (
            self.param(name, position_embedding, shape)[0] for name, shape in zip(names[1:3], shapes, strict=False)
        )
        bias = (jnp.moveaxis(square, 1, 3) if turned else square) + rows + columns
        bias = bias.reshape((h, -1, n) if turned else (h, n, -1))
        if not prefix:
            return bias
        return jnp.concatenate([self.param(names[3], position_embedding, shapes[2])[0], bias], axis=1 if turned else 2)
