"""What every attention layer of a model saw and gave in a forward pass, taken by intercepting its mixers."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from flatten_jax.analysis.matrices import depthwise_matrix, linear_matrix, softmax_matrix, stretch_matrix
from flatten_jax.attention import (
    MIXERS,
    DepthwiseConv,
    FocusedLinearMixer,
    QKVAttention,
    ReducedAttention,
    SoftmaxMixer,
    StripeAttention,
    WindowAttention,
    focused_map,
)
from flatten_jax.hosts.grids import partition
from flatten_jax.models.blocks import Block

Grid = tuple[int, int]
KINDS = ("softmax", "linear", "focused")

_HOSTS = (QKVAttention, WindowAttention, StripeAttention, ReducedAttention)
_KIND_OF_MIXER = {SoftmaxMixer: "softmax", FocusedLinearMixer: "focused"}


@dataclasses.dataclass(frozen=True)
class Layer:
    """One call of a mixer: B pictures in P windows each are its W = B P examples; without windows P = 1.

    In Swin's and CSwin's windows a query has no other keys than those of its window, so every matrix here is that of a
    window. A softmax block of CSwin has two layers, vertical and horizontal stripes, each with half of the heads.

    Attributes:
        name: path of its parameters, such as "blocks_3/attn" or "stage3_1/attns_0".
        block: number of its block, counted through the whole model from 0.
        kind: "softmax" or "focused".
        num_heads: h, each of width d = C / h.
        q: (W, N, C) queries as they enter the softmax or the map.
        k: (W, M, C) keys likewise, so with the positional encoding of focused linear attention.
        v: (W, M, C) values.
        output: (W, N, C), what goes on to `proj`, with CSwin's LePE.
        bias: (P, 1 or h, N, M) of the scores, or None.
        scale, focusing_factor: of the map; None and 3 where the layer has none.
        kernel: (k, k, h, d) of the depthwise branch, CSwin's LePE added to it; zeros (1, 1, h, d) where there is none.
        offset: (h, d), the bias of that convolution, added to every token and not part of any matrix.
        grid: (height, width) of the picture's tokens.
        window: (height, width) of the queries' grid that the mixer saw.
        places: (P, N, 2) row and column of each query on `grid`, beyond it for padding; NaN for a class token.
        key_places: (P, M, 2) likewise, the centre of a key's patch.
        key_size: tokens that a key spans along each axis (PVT's spatial reduction).
    """

    name: str
    block: int
    kind: str
    num_heads: int
    q: np.ndarray
    k: np.ndarray
    v: np.ndarray
    output: np.ndarray
    bias: np.ndarray | None
    scale: np.ndarray | None
    focusing_factor: float
    kernel: np.ndarray
    offset: np.ndarray
    grid: Grid
    window: Grid
    places: np.ndarray
    key_places: np.ndarray
    key_size: int

    def attention(self, kind: str | None = None, examples: slice = slice(None)) -> np.ndarray:
        """The attention matrix of every window and head, without the depthwise branch.

        Args:
            kind: the layer's own by default. Another one of KINDS puts the same queries and keys through it: "linear"
                is the plain ReLU map, "focused" the layer's map (of power 3 in a softmax layer).
            examples: which of the W.

        Returns:
            (W, h, N, M), see `softmax_matrix` and `linear_matrix`.
        """
        kind = kind or self.kind
        if kind not in KINDS:
            raise ValueError(f"{kind=} is none of {', '.join(KINDS)}")
        q, k = self.q[examples], self.k[examples]
        if kind == "softmax":
            bias = self.bias if self.bias is None else self.bias[np.arange(len(self.q))[examples] % len(self.bias)]
            return softmax_matrix(self._heads(q), self._heads(k), bias)
        power = self.focusing_factor if kind == "focused" else 1
        return linear_matrix(*(self._heads(focused_map(x, power, self.scale)) for x in (q, k)))

    def branch(self, head: int, channel: int | None = None, tokens: Sequence[int] | None = None) -> np.ndarray:
        """The matrix of the depthwise branch, the stretching of PVT's reduced values included.

        Args:
            head, channel: each channel of a head has its own; None: the mean over the head's channels.
            tokens: the R rows wanted; all N by default.

        Returns:
            (R, M), the same for every window.
        """
        kernel = self.kernel[:, :, head]
        kernel = kernel.mean(axis=2, keepdims=True) if channel is None else kernel[:, :, channel : channel + 1]
        return self._stretched(depthwise_matrix(kernel, self.window, tokens))[0]

    def effective(self, example: int, head: int, channel: int | None = None) -> np.ndarray:
        """M_eq of one window, head and channel: output[:, c] = M_eq v[:, c] + offset[c]. In a softmax layer without
        LePE it is the attention itself.

        Args:
            example: which of the W.
            channel: None: the mean over the head's channels, whose filters may cancel each other.

        Returns:
            (N, M).
        """
        attention = self.attention(examples=slice(example, example + 1))[0, head]
        return attention + self.branch(head, channel) if self.has_branch else attention

    @property
    def has_branch(self) -> bool:
        return bool(self.kernel.any())

    def influence(self, token: int, example: int = 0, kind: str | None = None) -> np.ndarray:
        """(h, M): how much one query takes from each key, in each head.

        Args:
            kind: one of KINDS, or "effective": the mean over a head's channels of the absolute entries of M_eq.
        """
        row = self.attention(None if kind == "effective" else kind, slice(example, example + 1))[0, :, token]
        if kind != "effective" or not self.has_branch:
            return row
        kernel = self.kernel.reshape(*self.kernel.shape[:2], -1)
        branch = self._stretched(depthwise_matrix(kernel, self.window, [token]))[:, 0]
        return np.abs(row[:, None] + branch.reshape(self.num_heads, -1, branch.shape[1])).mean(axis=1)

    def locate(self, query: Grid, picture: int = 0) -> tuple[int, int]:
        """(example, token) of the query at (row, column) of the grid."""
        found = np.argwhere((self.places == np.array(query)).all(axis=-1))
        if not len(found) or not all(0 <= x < side for x, side in zip(query, self.grid, strict=True)):
            raise ValueError(f"{query=} is not on the grid of {self.grid[0]} x {self.grid[1]} tokens of {self.name}")
        if not 0 <= picture < len(self.q) // len(self.places):
            raise ValueError(f"{picture=}: {len(self.q) // len(self.places)} were captured")
        window, token = found[0]
        return picture * len(self.places) + int(window), int(token)

    def on_picture(self, weights: np.ndarray, example: int) -> np.ndarray:
        """Weights of keys (..., M) -> (..., height, width), on all tokens that a key spans; 0 outside the window.

        What lies on padding or a class token is not on the picture.
        """
        canvas = np.zeros((*weights.shape[:-1], *self.grid))
        corners = self.key_places[example % len(self.key_places)] - (self.key_size - 1) / 2
        for offset in np.ndindex(self.key_size, self.key_size):
            rows, columns = (corners + offset).T
            inside = (rows >= 0) & (rows < self.grid[0]) & (columns >= 0) & (columns < self.grid[1])  # False for NaN
            canvas[..., rows[inside].astype(int), columns[inside].astype(int)] = weights[..., inside]
        return canvas

    def _heads(self, x: Any) -> np.ndarray:
        return np.asarray(x).reshape(*x.shape[:2], self.num_heads, -1)

    def _stretched(self, matrix: np.ndarray) -> np.ndarray:
        """(..., N) -> (..., M)."""
        keys = self.k.shape[1]
        return matrix if keys == matrix.shape[-1] else matrix @ stretch_matrix(matrix.shape[-1], keys)


def capture(model: nn.Module, variables: Mapping[str, Any], images: jax.Array) -> list[Layer]:
    """All attention layers of a forward pass, in order. The model is not changed, nor is what it computes.

    Args:
        model: from `create_model`. In half precision, or TF32 on a GPU, `output` is rounded and agrees with M_eq v to
            that.
        variables: {"params": ...}.
        images: (B, height, width, 3), normalised. Everything is kept in memory: a few pictures, not a data set.

    Raises:
        ValueError: a mixer whose matrix is not known here.
    """
    layers: list[Layer] = []
    blocks: list[str] = []
    hosts: list[tuple[nn.Module, Grid]] = []
    lepe: list[tuple[dict[str, Any], jax.Array]] = []

    def look(call: Callable, args: tuple, kwargs: dict[str, Any], context: nn.module.InterceptorContext) -> Any:
        module = context.module
        if context.method_name != "__call__":
            return call(*args, **kwargs)
        if isinstance(module, Block):
            blocks.append("/".join(module.path))
        if isinstance(module, _HOSTS):
            hosts.append((module, args[1]))
        output = call(*args, **kwargs)
        if isinstance(module, _HOSTS):
            hosts.pop()
        elif isinstance(module, DepthwiseConv) and module.name == "get_v":  # CSwin's LePE, before its mixer
            lepe.append((module.variables["params"], output))
        elif isinstance(module, tuple(MIXERS.values())):
            layers.append(_layer(module, args, output, len(blocks) - 1, hosts[0], lepe.pop() if lepe else None))
        return output

    # Rematerialised and looped blocks are traced, and tracers have no values.
    with nn.intercept_methods(look):
        model.clone(remat=False, scan=False).apply(variables, images, train=False)
    return layers


def _layer(
    mixer: nn.Module,
    args: tuple,
    output: jax.Array,
    block: int,
    host: tuple[nn.Module, Grid],
    lepe: tuple[dict[str, Any], jax.Array] | None,
) -> Layer:
    if type(mixer) not in _KIND_OF_MIXER:
        known = ", ".join(cls.__name__ for cls in _KIND_OF_MIXER)
        raise ValueError(f"the matrix of {type(mixer).__name__} in block {block} is not known; only those of {known}")
    q, k, v, window, _, bias = (*args, None)[:6]
    linear = isinstance(mixer, FocusedLinearMixer)
    params = mixer.variables.get("params", {})
    if linear and mixer.use_positional_encoding:
        k = k + params["positional_encoding"].astype(k.dtype)
    heads = (mixer.num_heads, q.shape[2] // mixer.num_heads)
    convolutions = [params["dwc"]] if linear and mixer.use_dwc else []
    if lepe is not None:
        convolutions.append(lepe[0])
        output = output + lepe[1].reshape(output.shape)
    kernel, offset = _sum_of_convolutions(convolutions, heads)
    places, key_places, key_size = _places(host, window, q.shape[1], k.shape[1])
    return Layer(
        name="/".join(mixer.path),
        block=block,
        kind=_KIND_OF_MIXER[type(mixer)],
        num_heads=mixer.num_heads,
        **{name: np.asarray(x, np.float32) for name, x in (("q", q), ("k", k), ("v", v), ("output", output))},
        bias=None if bias is None else np.asarray(bias, np.float32),
        scale=np.asarray(params["scale"]) if linear else None,
        focusing_factor=mixer.focusing_factor if linear else 3.0,
        kernel=kernel,
        offset=offset,
        grid=host[1],
        window=window,
        places=places,
        key_places=key_places,
        key_size=key_size,
    )


def _sum_of_convolutions(convolutions: list[Any], heads: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """((k, k, h, d), (h, d)): depthwise convolutions of one input added up, smaller kernels having zeros around."""
    size = max([conv["kernel"].shape[0] for conv in convolutions], default=1)
    kernel, offset = np.zeros((size, size, *heads)), np.zeros(heads)
    for conv in convolutions:
        margin = (size - conv["kernel"].shape[0]) // 2
        inner = slice(margin, size - margin)
        # `dwc` has d channels, which the heads share, LePE all h d.
        kernel[inner, inner] += np.asarray(conv["kernel"]).reshape(*conv["kernel"].shape[:2], -1, heads[1])
        offset += np.asarray(conv["bias"]).reshape(-1, heads[1])
    return kernel, offset


def _places(host: tuple[nn.Module, Grid], window: Grid, tokens: int, keys: int) -> tuple[np.ndarray, np.ndarray, int]:
    """Places of queries and keys, and the span of a key: see Layer. The windows are made as the host makes them."""
    module, grid = host
    padded = tuple(-(-side // size) * size for side, size in zip(grid, window, strict=True))
    places = np.stack(np.indices(padded), axis=-1)
    if isinstance(module, WindowAttention) and module.shifted:
        shift = [size // 2 if size < side else 0 for side, size in zip(grid, window, strict=True)]
        places = np.roll(places, (-shift[0], -shift[1]), axis=(0, 1))
    places = partition(places[None], window).astype(float)
    class_tokens = np.full((len(places), tokens - places.shape[1], 2), np.nan)
    places = np.concatenate([class_tokens, places], axis=1)
    span = getattr(module, "sr_ratio", 1)
    if span == 1:
        return places, places, 1
    key_grid = tuple(side // span for side in grid)
    key_places = np.stack(np.indices(key_grid), axis=-1).reshape(1, keys, 2) * span + (span - 1) / 2
    return places, key_places, span
