"""Attention for models of one's own: any of the table, with its projections, on tokens or on maps."""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from flatten_jax.attention.contract import Grid, Site
from flatten_jax.attention.table import attention_options
from flatten_jax.hosts.plain import QKVAttention


class AttentionLayer(nn.Module):
    """Self-attention of the tokens of one picture, projections included: what `LinearAttention` makes.

    Attributes:
        attn_type: name of the attention.
        num_heads: number of heads h, a divisor of C.
        options: the attention's own, such as {"agent_num": 9}.
        dtype: of the matrix products, such as bfloat16; parameters and what needs float32 are float32. None: that of x.
    """

    attn_type: str
    num_heads: int
    options: Mapping[str, Any] = nn.FrozenDict()
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, x: jax.Array, grid: Grid | None = None, prefix: int = 0, train: bool = False) -> jax.Array:
        """The same shape as x, whose every token has looked at all of its picture.

        Args:
            x: tokens (B, prefix + N, C), or a map (B, height, width, C).
            grid: (height, width) of the tokens, height * width = N, row by row. Python integers: they are part of the
                program that is compiled. A map has its own and needs none.
            prefix: how many tokens stand before those of the grid: class tokens, registers.
            train: whether running statistics are updated, for attentions that have some (mutable=["batch_stats"]).

        Raises:
            ValueError: no grid for tokens, or another number of tokens than it has; a prefix that the attention does
                not take; C that num_heads does not divide; an option out of range.
        """
        return on_tokens(QKVAttention(self.num_heads, self.attn_type, self.options, self.dtype), self)(
            x, grid, prefix, train
        )


def LinearAttention(
    attn_type: str,
    num_heads: int,
    options: Mapping[str, Any] | None = None,
    dtype: jnp.dtype | None = None,
    name: str | None = None,
    **more: Any,
) -> AttentionLayer:
    """An attention of the table as a Linen module, for where a vision model has its multi-head attention.

    Examples:
        >>> import jax, flatten_jax
        >>> layer = flatten_jax.LinearAttention("rala", num_heads=6)
        >>> x = jax.numpy.ones((2, 1 + 14 * 10, 96))  # a class token, and a grid row by row
        >>> y, variables = layer.init_with_output(jax.random.key(0), x, grid=(14, 10), prefix=1)
        >>> y.shape
        (2, 141, 96)

    A map (B, height, width, C) needs no grid. `flatten_jax.from_torch(state_dict, layer, example=x, grid=(14, 10),
    prefix=1)` fills it by the names of the original.

    Args:
        attn_type: one of `flatten_jax.list_attentions()`.
        num_heads: number of heads h, a divisor of C.
        options: the attention's own; they may be written as keywords too, `LinearAttention("agent", 6, agent_num=9)`.
        dtype: of the matrix products; None: that of x.
        name: of the module in its parent.

    Raises:
        ValueError: an unknown name or option.
    """
    known = attention_options(attn_type)
    options = {k: tuple(v) if isinstance(v, list) else v for k, v in {**(options or {}), **more}.items()}
    if unknown := sorted(options.keys() - known):
        raise ValueError(f"{attn_type} has no option {', '.join(unknown)}; it has {', '.join(known) or 'none'}")
    return AttentionLayer(attn_type, num_heads, nn.FrozenDict(options), dtype, name=name)


class FocusedLinearAttention(nn.Module):
    """Focused linear attention with its options as attributes: the older name of `LinearAttention("focused", ...)`.

    It is the attention of FLatten-DeiT.

    Examples:
        In a model of one's own:

        >>> import flax.linen as nn
        >>> from flatten_jax import FocusedLinearAttention
        >>> class Block(nn.Module):
        ...     @nn.compact
        ...     def __call__(self, x):  # (B, height, width, C)
        ...         x = x + FocusedLinearAttention(num_heads=6)(nn.LayerNorm()(x))
        ...         return x + nn.Dense(x.shape[-1])(nn.gelu(nn.Dense(4 * x.shape[-1])(nn.LayerNorm()(x))))
        >>> x = jax.numpy.ones((2, 14, 10, 96))
        >>> y, variables = Block().init_with_output(jax.random.key(0), x)
        >>> y.shape
        (2, 14, 10, 96)

        On tokens, it is told their grid. In a Flax NNX model it goes through NNX's own bridge:

        >>> from flax import nnx
        >>> tokens = x.reshape(2, 140, 96)
        >>> attention = nnx.bridge.ToNNX(FocusedLinearAttention(num_heads=6), rngs=nnx.Rngs(0))
        >>> attention = attention.lazy_init(tokens, grid=(14, 10))
        >>> attention(tokens, grid=(14, 10)).shape
        (2, 140, 96)

    The grid: attention itself does not know where a token is. The depthwise convolution beside it needs to know which
    tokens are neighbours, and N tells neither the sides nor their order. The positional encoding has one row for each
    token, so the parameters belong to a number of tokens. Without it (`use_positional_encoding=False`) they fit every
    size.

    Class tokens: all tokens are on the grid. A class token, or a register, has no place there and is refused. Leave it
    out and pool the tokens, `x.mean(axis=1)`, as FLatten does.

    Parameters have the names of the PyTorch release: `qkv`, `proj`, `scale`, `positional_encoding`, `dwc`. Those of an
    attention layer of FLatten-DeiT, `variables["params"]["blocks_0"]["attn"]`, fit as they are.

    Attributes:
        num_heads: number of heads h, a divisor of C.
        focusing_factor: power p >= 1 of the focused map; higher is sharper, 1 is linear attention with a ReLU.
        kernel_size: side of the depthwise convolution, odd.
        use_dwc: with the depthwise convolution; without it the grid does not matter.
        use_positional_encoding: with a learned encoding, added to the keys.
        dtype: of the computation, such as bfloat16; parameters, map and normaliser are float32. None: that of x.
    """

    num_heads: int
    focusing_factor: float = 3.0
    kernel_size: int = 5
    use_dwc: bool = True
    use_positional_encoding: bool = True
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, x: jax.Array, grid: Grid | None = None) -> jax.Array:
        """As `AttentionLayer`: tokens (B, N, C) on `grid`, or a map (B, height, width, C) -> the same shape."""
        options = {name: getattr(self, name) for name in attention_options("focused")}
        return on_tokens(QKVAttention(self.num_heads, "focused", options, self.dtype), self)(x, grid)


def on_tokens(host: nn.Module, scope: nn.Module) -> Any:
    """call(x, grid, prefix, train) of a host whose variables are those of `scope`, for tokens and for maps."""
    nn.share_scope(scope, host)

    def call(x: jax.Array, grid: Grid | None = None, prefix: int = 0, train: bool = False) -> jax.Array:
        if x.ndim not in (3, 4):
            raise ValueError(f"{x.shape=} is neither tokens (B, N, C) nor a map (B, height, width, C)")
        if x.ndim == 4:
            if prefix:
                raise ValueError(f"{prefix=} tokens stand before a grid: give tokens (B, prefix + N, C), not a map")
            if grid is not None and tuple(grid) != x.shape[1:3]:
                raise ValueError(f"{grid=} is not that of the map {x.shape=}; a map needs none")
            grid = x.shape[1:3]
        if grid is None:
            raise ValueError(f"tokens, {x.shape=}, need grid=(height, width): their number does not tell it")
        tokens = x.reshape(x.shape[0], -1, x.shape[-1])
        return host(tokens, Site(tuple(grid), prefix=prefix, train=train)).reshape(x.shape)

    return call
