"""Softmax attention inside small windows as one TPU kernel, forward and backward: no score leaves the chip.

What it computes is `softmax.softmax_attention`. Channels lie along the lanes as they come, as many heads side by side
as fill 128 of them. The keys of these heads, each with the others' channels set to zero, stand below each other: one
product gives the scores of all of them side by side, another brings their results back into their own channels. Gains
by the compiler's schedule, and what was not seen: docs/notes_speed.md.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import Mesh

from flatten_jax.attention.softmax import ABSENT
from flatten_jax.ops.platform import on_each_device

_LANES, _ROWS = 128, 64  # of a tile of heads, and of their tokens: the scores of two heads fill the lanes
_TOGETHER = 16  # windows of a turn


def takes(q: jax.Array, k: jax.Array, v: jax.Array, bias: jax.Array | None, mesh: Mesh) -> bool:
    """Whether the kernel is for these: (B, N, h, d) three times, in bfloat16, of 33 to 64 tokens, Swin's 49 among them.

    Whole tiles of heads: d is 32 or 64, and C = h d a multiple of 128. Images are split over all devices, and at most
    16 windows of one have biases of their own. With more tokens XLA is nearly as fast, with fewer most of the kernel's
    work is on what fills up.
    """
    windows, tokens, heads, width = q.shape
    kinds = 1 if bias is None else len(bias)
    return (
        all(x.dtype == jnp.bfloat16 and x.shape == q.shape for x in (q, k, v))
        and _ROWS // 2 < tokens <= _ROWS
        and width in (32, 64)
        and kinds <= _TOGETHER
        and heads * width % _LANES == 0
        and (bias is None or bias.shape[1:] == (heads, tokens, tokens))
        and windows % (mesh.size * kinds) == 0
    )


def forward(q: jax.Array, k: jax.Array, v: jax.Array, bias: jax.Array, scale: float, mesh: Mesh) -> jax.Array:
    """softmax(scale q k^T + bias) v: (B, N, h, d).

    Args:
        q, k, v: (B, N, h, d), see `takes`.
        bias: (W, h, N, N), window b takes bias[b % W].
        mesh: over all of whose axes the windows are split.
    """
    (out,) = _call(partial(_forward, q.shape[3], scale, q.shape[1]), mesh, (q, k, v), bias)
    return out.reshape(q.shape)


def backward(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    bias: jax.Array,
    gradient: jax.Array,
    scale: float,
    mesh: Mesh,
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Gradients of q, k, v and the bias from those and that of the result, (B, N, h, d)."""
    body = partial(_backward, q.shape[3], scale, q.shape[1])
    *found, of_bias = _call(body, mesh, (q, k, v, gradient), bias, backward=True)
    return *(x.reshape(q.shape) for x in found), _unpacked(of_bias.sum(axis=0), bias.shape).astype(bias.dtype)


def _together(windows: int, kinds: int) -> int:
    """Windows of a turn: of whole images."""
    return max(n for n in range(kinds, _TOGETHER + 1, kinds) if windows % n == 0)


def _packed(bias: jax.Array, channels: int) -> jax.Array:
    """(W, h, N, N) -> (W, tiles, 64, heads of a tile * 64), what fills up as keys that are not there."""
    kinds, heads, tokens, _ = bias.shape
    tiles, fill = channels // _LANES, _ROWS - tokens
    bias = jnp.pad(bias.astype(jnp.float32), ((0, 0), (0, 0), (0, 0), (0, fill)), constant_values=ABSENT)
    bias = jnp.pad(bias, ((0, 0), (0, 0), (0, fill), (0, 0)))
    bias = bias.reshape(kinds, tiles, heads // tiles, _ROWS, _ROWS).swapaxes(2, 3)
    return bias.reshape(kinds, tiles, _ROWS, -1)


def _unpacked(packed: jax.Array, shape: Sequence[int]) -> jax.Array:
    kinds, heads, tokens, _ = shape
    tiles = packed.shape[1]
    bias = packed.reshape(kinds, tiles, _ROWS, heads // tiles, _ROWS).swapaxes(2, 3)
    return bias.reshape(kinds, heads, _ROWS, _ROWS)[:, :, :tokens, :tokens]


def _call(
    body: Callable,
    mesh: Mesh,
    arrays: Sequence[jax.Array],
    bias: jax.Array,
    backward: bool = False,
) -> Sequence[jax.Array]:
    """`body` for every few windows, on the device where they lie; of the bias's gradient a sum for each device."""
    tokens, channels = arrays[0].shape[1], math.prod(arrays[0].shape[2:])
    kinds, packed = len(bias), _packed(bias, channels)

    def kernel(packed: jax.Array, *arrays: jax.Array) -> Sequence[jax.Array]:
        together = _together(len(arrays[0]), kinds)
        turns, tiles = len(arrays[0]) // together, channels // _LANES
        block = pl.BlockSpec((together, _ROWS, _LANES), lambda tile, turn: (turn, 0, tile))
        whole = pl.BlockSpec((kinds, 1, *packed.shape[2:]), lambda tile, turn: (0, tile, 0, 0))
        here = [jax.ShapeDtypeStruct(arrays[0].shape, arrays[0].dtype)] * (3 if backward else 1)
        sums = [jax.ShapeDtypeStruct(packed.shape, jnp.float32)] * backward
        call = pl.pallas_call(
            body,
            grid=(tiles, turns),
            in_specs=[whole, *[block] * len(arrays)],
            out_specs=[*[block] * len(here), *[whole] * len(sums)],
            out_shape=[*here, *sums],
            compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "arbitrary")),
        )
        found = call(packed, *arrays)
        return *found[: len(here)], *(x[None] for x in found[len(here) :])

    by_window = [x.reshape(-1, tokens, channels) for x in arrays]
    return on_each_device(kernel, mesh, packed, by_window, 4 if backward else 1)


def _forward(width: int, scale: float, tokens: int, bias: Any, q: Any, k: Any, v: Any, out: Any) -> None:
    """Some heads of a few windows: references to (W, 1, 64, heads * 64) and to (windows, 64, 128)."""
    for window in range(len(q)):
        query, key, value = (_read(x, window, tokens) for x in (q, k, v))
        shares = _shares(query, _stacked(key, width), bias[window % len(bias), 0], scale)
        out[window] = _dot(shares.astype(v.dtype), _stacked(value, width), 1, 0).astype(out.dtype)


def _backward(
    width: int,
    scale: float,
    tokens: int,
    bias: Any,
    q: Any,
    k: Any,
    v: Any,
    gradient: Any,
    of_q: Any,
    of_k: Any,
    of_v: Any,
    of_bias: Any,
) -> None:
    """With out = P v: dS = P (g v^T - the sum of P (g v^T) over keys). `of_bias` sums over all turns."""
    dtype = v.dtype

    @pl.when(pl.program_id(1) == 0)
    def _():
        of_bias[...] = jnp.zeros(of_bias.shape, of_bias.dtype)

    for window in range(len(q)):
        query, key, value, pulled = (_read(x, window, tokens) for x in (q, k, v, gradient))
        keys = _stacked(key, width)
        shares = _shares(query, keys, bias[window % len(bias), 0], scale)
        slope = _dot(pulled, _stacked(value, width), 1, 1)
        slope = shares * (slope - _per_head(jnp.sum, shares * slope, 0))
        of_bias[window % len(bias), 0] += slope
        slope = slope.astype(dtype)
        of_q[window] = (scale * _dot(slope, keys, 1, 0)).astype(dtype)
        of_k[window] = (scale * _unstacked(_dot(slope, query, 0, 0), width)).astype(dtype)
        of_v[window] = _unstacked(_dot(shares.astype(dtype), pulled, 0, 0), width).astype(dtype)


def _read(x: Any, window: int, tokens: int) -> jax.Array:
    """(64, 128), zero where only filled up, which may hold anything."""
    return jnp.where(jax.lax.broadcasted_iota(jnp.int32, x.shape[1:], 0) < tokens, x[window], 0)


def _own(shape: Sequence[int], width: int, head: int) -> jax.Array:
    lane = jax.lax.broadcasted_iota(jnp.int32, shape, 1)
    return (lane >= head * width) & (lane < (head + 1) * width)


def _stacked(x: jax.Array, width: int) -> jax.Array:
    """(64, 128) -> (heads * 64, 128), each head with its own channels alone."""
    return jnp.concatenate([jnp.where(_own(x.shape, width, head), x, 0) for head in range(_LANES // width)])


def _unstacked(x: jax.Array, width: int) -> jax.Array:
    """(heads * 64, 128) -> (64, 128), of each head its own channels."""
    parts = jnp.split(x, _LANES // width)
    return sum(jnp.where(_own(part.shape, width, head), part, 0) for head, part in enumerate(parts))


def _shares(query: jax.Array, keys: jax.Array, bias: jax.Array, scale: float) -> jax.Array:
    """The softmax of all heads side by side, (64, heads * 64)."""
    scores = _dot(query, keys, 1, 1) * scale + bias
    shares = jnp.exp(scores - _per_head(jnp.max, scores, -jnp.inf))
    return shares / _per_head(jnp.sum, shares, 0)


def _per_head(reduce: Callable, x: jax.Array, nothing: float) -> jax.Array:
    """`reduce` over the keys of each head, at each of them: (64, heads * 64)."""
    first = _own((_ROWS, _LANES), _ROWS, 0)
    halves = [
        [reduce(jnp.where(of, tile, nothing), axis=1, keepdims=True) for of in (first, ~first)]
        for tile in jnp.split(x, x.shape[1] // _LANES, axis=1)
    ]
    return jnp.concatenate([jnp.where(first, *pair) for pair in halves], axis=1)


def _dot(a: jax.Array, b: jax.Array, of_a: int, of_b: int) -> jax.Array:
    """The sum over axis `of_a` of a and `of_b` of b, in float32."""
    return jax.lax.dot_general(a, b, (((of_a,), (of_b,)), ((), ())), preferred_element_type=jnp.float32)
