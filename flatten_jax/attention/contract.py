"""What an attention is: `attention(x, site, *streams)`, the contract between mechanisms and the hosts around them.

A mechanism is one file with one subclass of `Attention` and the functions of arrays that it is made of, and one line in
`table.py`. It declares what its host projects for it and what it can take. Hosts, models, checkpoints, the analysis,
the benchmark and the contract test (tests/attention/test_contract.py) read the declaration. How to add one, step by
step: docs/attentions.md.
"""

from collections.abc import Callable, Mapping
from typing import ClassVar, Literal, NamedTuple

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from flatten_jax.ops.initializers import TORCH_CONV, ConvInit

Grid = tuple[int, int]
# Where a caller asks for it, mutable=[MAPS], attentions that form a map leave it here, see `Attention.show_map`.
MAPS = "maps"


@flax.struct.dataclass
class Site:
    """Where an attention stands: what its host knows and the tokens do not tell.

    Hosts narrow it with `site.replace`.

    Attributes:
        grid: (height, width) of the queries' tokens, row-major.
        key_grid: that of the keys and values, where PVT makes them coarser; None: `grid`.
        prefix: how many tokens stand before those of the grid, such as a class token.
        train: whether this is a step of training.
        window: whether these tokens are a window or stripe of a picture, and not all of it.
        bias: added to scores, (W, 1 or h, N, M) with W a divisor of B. Example b takes bias[b % W], so that the windows
            of a picture can differ while pictures share them.
        before: (B, N, C), what the attention of the block before gave, for those that declare `takes_before`.
        mask: (B, prefix + N) bool, which tokens there are; the others only fill up sequences. None: all.
    """

    grid: Grid = flax.struct.field(pytree_node=False)
    key_grid: Grid | None = flax.struct.field(pytree_node=False, default=None)
    prefix: int = flax.struct.field(pytree_node=False, default=0)
    train: bool = flax.struct.field(pytree_node=False, default=False)
    window: bool = flax.struct.field(pytree_node=False, default=False)
    bias: jax.Array | None = None
    before: jax.Array | None = None
    mask: jax.Array | None = None

    @property
    def keys(self) -> Grid:
        """The grid of the keys."""
        return self.key_grid or self.grid


class Sized(NamedTuple):
    """How a parameter belongs to a number of tokens, and so what another image size does to it (`weights.resample`).

    Attributes:
        axis: the axis that is as long as there are tokens, rows or columns.
        along: which of these. "offsets": a table of relative positions, as Swin's. "fixed": the parameter belongs to
            one grid alone, another size is refused.
        of: the grid that has them.
        summed: results are sums over this axis, so resampled values are divided by how many more there are.
    """

    axis: int
    along: Literal["tokens", "rows", "columns", "offsets", "fixed"] = "tokens"
    of: Literal["queries", "keys"] = "keys"
    summed: bool = False


class Origin(NamedTuple):
    """Where a mechanism comes from.

    Attributes:
        paper: authors, venue and year.
        arxiv: the paper's number there, or "".
        code: the official repository at the commit that was compared with.
        licence: of that repository; "none" where it has none. Nothing of it is copied here in any case.
        formula: the mechanism in a line.
    """

    paper: str
    arxiv: str
    code: str
    licence: str
    formula: str


class Attention(nn.Module):
    """The base of all mechanisms. `__call__(x, site, *streams) -> (B, N, C)`.

    x is (B, N, C), the normed tokens, `site.prefix` of them before those of the grid. With `streams = "qkv"`, say, the
    host projects x to three streams: (B, N, ·) for letters of the queries' tokens, (B, M, ·) for "k" and "v". One
    linear layer makes all (in PVT one for either side). Its name is its letters, as in the originals (`qkv`, `qkvo`,
    `qg` and `kv`). The host projects the result by `proj` (`projects_out`). With `streams = ""` the mechanism makes all
    of its layers itself.

    What a mechanism declares:

    - `origin`: paper, code and formula.
    - `streams`: letters; "k" and "v" are of the keys' tokens, all others of the queries'.
    - `stream_bias`: whether the layers of the streams have a bias.
    - `streams_apart`: whether each stream is a product of its own where TPU kernels are asked for, which read streams
      as arrays.
    - `projects_out`: whether the host projects the result, by `proj`. If not, the mechanism gives (B, N, C) itself.
    - `takes_bias`: whether it has scores (B, h, N, M), to which `site.bias` is added. Its cost grows with N M, so
      models give it small windows, narrow stripes and reduced keys. Others get what linear stages get.
    - `takes_prefix`: whether it knows what to do with tokens that have no place on the grid.
    - `takes_reduced`: whether keys and values may be fewer than queries.
    - `takes_windows`: whether it works inside windows and stripes.
    - `takes_before`: whether it uses `site.before`.
    - `takes_mask`: whether tokens that `site.mask` leaves out do not count, as if they were not there.
    - `forms_map`: whether a row of weights for each query, not negative and of sum 1, says all that it does with the
      values: out = map v. It calls `show_map` with them.
    - `linear_cost`: whether its cost grows linearly with the number of tokens.
    - `independent`: whether an example's result is its own in evaluation, and not its batch-mates' too.
    - `sized`: parameter -> how it belongs to the number of tokens.
    - `original`: our layer or stream -> its name in the original, where that is another: {"q": "q_proj", ...}.
    - `pointwise`: our layers that are 1 x 1 convolutions in the original.
    - `computed`: patterns of the ends of names. Entries of the original's state dict with such names can be computed by
      anyone, and are not loaded.

    Attributes:
        num_heads: h.
        dtype: of the matrix products. What needs float32 is in float32 always.
        conv_init: initial values of convolutions; the host says which.
    """

    origin: ClassVar[Origin]
    streams: ClassVar[str] = "qkv"
    stream_bias: ClassVar[bool] = True
    streams_apart: ClassVar[bool] = False
    projects_out: ClassVar[bool] = True
    takes_bias: ClassVar[bool] = False
    takes_prefix: ClassVar[bool] = True
    takes_reduced: ClassVar[bool] = True
    takes_windows: ClassVar[bool] = True
    takes_before: ClassVar[bool] = False
    takes_mask: ClassVar[bool] = False
    forms_map: ClassVar[bool] = False
    linear_cost: ClassVar[bool] = True
    independent: ClassVar[bool] = True
    sized: ClassVar[Mapping[str, Sized]] = {}
    original: ClassVar[Mapping[str, str]] = {}
    pointwise: ClassVar[tuple[str, ...]] = ()
    computed: ClassVar[tuple[str, ...]] = ()

    num_heads: int
    dtype: jnp.dtype | None = None
    conv_init: ConvInit = TORCH_CONV

    def widths(self, channels: int) -> Mapping[str, int]:
        """Channels of each stream, for x of `channels`."""
        return dict.fromkeys(self.streams, channels)

    def belongs(self) -> Mapping[str, Sized]:
        """`sized`, with the options that this one has."""
        return self.sized

    def check(self, x: jax.Array, site: Site) -> None:
        """ValueError where the host asks for what this mechanism cannot do; hosts call it before they project."""
        name, (_, tokens, channels), (height, width) = type(self).__name__, x.shape, site.grid
        if channels % self.num_heads:
            raise ValueError(f"{channels=} is not divisible by num_heads={self.num_heads}")
        if tokens != site.prefix + height * width:
            raise ValueError(
                f"{tokens} tokens are not those of a grid {height} x {width} = {height * width} and "
                f"prefix={site.prefix} tokens before it"
                if site.prefix
                else f"{tokens} tokens were given, and the grid {height} x {width} has {height * width}; of class "
                "tokens and registers the number has to be told (prefix=1)"
            )
        for asked, takes, sentence in (
            (site.mask is not None, "takes_mask", "cannot leave out what fills up shorter sequences"),
            (
                site.prefix,
                "takes_prefix",
                "takes no class token, pool the tokens (class_token=False)",
            ),
            (
                site.keys != site.grid,
                "takes_reduced",
                f"has a key for every query: keys cannot be reduced to {site.keys}",
            ),
            (site.window, "takes_windows", "needs all of a picture: no windows and no stripes smaller than the grid"),
            (site.bias is not None, "takes_bias", "forms no scores that a bias could be added to"),
        ):
            if asked and not getattr(self, takes):
                raise ValueError(f"{name} {sentence}; those that do: {_that(takes)}")

    def show_map(self, weights: Callable[[], jax.Array], v: jax.Array) -> None:
        """Leave the map in the collection MAPS where a caller asks for it, and compute nothing otherwise.

        Args:
            weights: gives (B, h, N, M).
            v: values (B, M, h, d).
        """
        if self.is_mutable_collection(MAPS) and not self.is_initializing():
            self.put_variable(MAPS, "map", weights())
            self.put_variable(MAPS, "values", v)


def _that(takes: str) -> str:
    """The names of the attentions that declare this."""
    from flatten_jax.attention.table import ATTENTIONS  # which needs this module

    return ", ".join(name for name, cls in ATTENTIONS.items() if getattr(cls, takes))


def heads(x: jax.Array, num_heads: int) -> jax.Array:
    """(B, N, C) -> (B, N, h, C / h)."""
    return x.reshape(*x.shape[:2], num_heads, -1)


def on_grid(x: jax.Array, site: Site) -> jax.Array:
    """(B, prefix + N, C) -> (B, height, width, C), without the prefix."""
    return x[:, site.prefix :].reshape(x.shape[0], *site.grid, x.shape[2])


def add_on_grid(x: jax.Array, y: jax.Array, site: Site) -> jax.Array:
    """x (B, prefix + N, C), with a map y (B, height, width, C) added to the tokens of the grid."""
    y = y.reshape(y.shape[0], -1, y.shape[3])
    return x + (jnp.pad(y, ((0, 0), (site.prefix, 0), (0, 0))) if site.prefix else y)
