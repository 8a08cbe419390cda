"""Focused linear attention for models of one's own."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from flatten_jax.attention.hosts import Grid, QKVAttention
from flatten_jax.attention.mixers import mixer_options


class FocusedLinearAttention(nn.Module):
    """Self-attention of the tokens of one grid, at a cost linear in their number; projections included.

    The attention of FLatten-DeiT, for where a vision model has its multi-head attention. In a model of one's own:

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

    On tokens, the grid is told; in a Flax NNX model, by NNX's own bridge:

    >>> from flax import nnx
    >>> tokens = x.reshape(2, 140, 96)
    >>> attention = nnx.bridge.ToNNX(FocusedLinearAttention(num_heads=6), rngs=nnx.Rngs(0))
    >>> attention = attention.lazy_init(tokens, grid=(14, 10))
    >>> attention(tokens, grid=(14, 10)).shape
    (2, 140, 96)

    The grid. The attention itself does not know where a token is; the depthwise convolution that is added to it does.
    It has to know which tokens are neighbours, and N tells neither the sides nor their order. The positional encoding
    has one row for each token, so the parameters belong to a number of tokens; without it
    (`use_positional_encoding=False`) they fit every size.

    Class tokens. All tokens are on the grid. A class token, or a register, has no place there and is refused: leave
    it out and pool the tokens, `x.mean(axis=1)`, as FLatten does.

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
        """The same shape as x, whose every token has looked at all of its picture.

        Args:
            x: tokens (B, N, C), or a map (B, height, width, C).
            grid: (height, width) of the tokens, height * width = N, row by row. Python integers: they are part of the
                program that is compiled. A map has its own and needs none.

        Raises:
            ValueError: no grid for tokens, or one of another number of them; C that num_heads does not divide; an even
                kernel_size; a focusing_factor below 1.
        """
        if x.ndim not in (3, 4):
            raise ValueError(f"{x.shape=} is neither tokens (B, N, C) nor a map (B, height, width, C)")
        if x.ndim == 4:
            if grid is not None and tuple(grid) != x.shape[1:3]:
                raise ValueError(f"{grid=} is not that of the map {x.shape=}; a map needs none")
            grid = x.shape[1:3]
        if grid is None:
            raise ValueError(f"tokens, {x.shape=}, need grid=(height, width): their number does not tell it")
        height, width = grid
        tokens = x.reshape(x.shape[0], -1, x.shape[-1])
        if tokens.shape[1] != height * width:
            raise ValueError(
                f"{tokens.shape[1]} tokens are not on a grid of {height} x {width} = {height * width}; leave class "
                "tokens and registers out, and pool the tokens instead (x.mean(axis=1))"
            )
        options = {name: getattr(self, name) for name in mixer_options("L")}
        attention = QKVAttention(self.num_heads, "L", options, self.dtype)
        nn.share_scope(self, attention)
        return attention(tokens, (height, width)).reshape(x.shape)
