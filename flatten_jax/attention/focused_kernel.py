"""Map and core of focused linear attention as one TPU kernel, forward and backward: q, k and v are read once.

What it computes is `focused.focused_attention`, an example a turn. Tokens lie along the lanes and channels along the
sublanes, so that 64 channels fill their tiles, and the map's sums over channels cost no shuffling. Gains by the
compiler's schedule, and what was not seen: docs/notes_speed.md.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import Mesh

from flatten_jax.ops.platform import on_each_device

# MiB of on-chip memory by `device_kind`; v2 to v4 have 16.
_ON_CHIP = {"TPU v5 lite": 128, "TPU v5e": 128, "TPU v5": 64, "TPU v5p": 64, "TPU v6 lite": 128, "TPU v6e": 128}
_LEAST_TOKENS = 784  # with fewer, their filling up to 128 lanes eats the gain
_ARRAYS = 20  # of (C, N) in float32, what the backward kernel keeps; seen: 19.8 at C = 96


def takes(q: jax.Array, k: jax.Array, v: jax.Array, num_heads: int, p: float, mesh: Mesh) -> bool:
    """Whether the kernel is for these: (B, N, C), (B, M, C) twice, in bfloat16, and p a small whole number.

    Examples are split over all devices, heads fill tiles of 16 channels, and an example fits into on-chip memory.
    """
    channels, tokens = q.shape[2], max(q.shape[1], k.shape[1])
    return (
        all(x.dtype == jnp.bfloat16 for x in (q, k, v))
        and p in range(2, 9)
        and channels ** (p - 1) < 1e30  # then a map of vectors of length 1 is within float32
        and channels % (16 * num_heads) == 0
        and min(q.shape[1], k.shape[1]) >= _LEAST_TOKENS
        and q.shape[0] % mesh.size == 0
        and _needed(channels, tokens) <= _ON_CHIP.get(mesh.devices.flat[0].device_kind, 16) << 20
    )


def forward(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    inverse: jax.Array,
    num_heads: int,
    p: int,
    epsilons: tuple[float, float],
    mesh: Mesh,
) -> jax.Array:
    """phi(q) (phi(k)^T v), normalised: (B, N, C).

    Args:
        q, k, v: (B, N, C), (B, M, C), (B, M, C), see `takes`.
        inverse: (C,) in float32, by which ReLU(x) + epsilon is multiplied.
        epsilons: of the map and of the normaliser.
        mesh: over all of whose axes the examples are split.
    """
    body = partial(_forward, num_heads, p, epsilons)
    result = jax.ShapeDtypeStruct(_turned(q.shape), v.dtype)
    (out,) = _call(body, mesh, [_turn(x) for x in (q, k, v)], inverse, [result])
    return _turn(out)


def backward(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    inverse: jax.Array,
    gradient: jax.Array,
    num_heads: int,
    p: int,
    epsilons: tuple[float, float],
    mesh: Mesh,
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Gradients of q, k, v and `inverse`, in their shapes, from those four alone and that of the result, (B, N, C)."""
    body = partial(_backward, num_heads, p, epsilons)
    of_streams = [jax.ShapeDtypeStruct(_turned(x.shape), x.dtype) for x in (q, k, v)]
    of_inverse = jax.ShapeDtypeStruct((q.shape[0], len(inverse), 1), jnp.float32)
    arrays = [_turn(x) for x in (q, k, v, gradient)]
    *found, inverses = _call(body, mesh, arrays, inverse, [*of_streams, of_inverse])
    return *(_turn(x) for x in found), inverses.sum(axis=(0, 2))


def _turn(x: jax.Array) -> jax.Array:
    """(B, N, C) <-> (B, C, N)."""
    return x.swapaxes(1, 2)


def _turned(shape: Sequence[int]) -> tuple[int, ...]:
    return (shape[0], shape[2], shape[1])


def _needed(channels: int, tokens: int) -> int:
    """Bytes of on-chip memory."""
    return _ARRAYS * 4 * channels * (-(-tokens // 128) * 128)


def _call(
    body: Callable,
    mesh: Mesh,
    arrays: Sequence[jax.Array],
    inverse: jax.Array,
    results: Sequence[jax.ShapeDtypeStruct],
) -> Sequence[jax.Array]:
    """`body` for every example, on the device where it lies; `inverse` is given to all as (C, 1)."""

    def kernel(inverse: jax.Array, *arrays: jax.Array) -> Sequence[jax.Array]:
        def block(x: Any) -> pl.BlockSpec:
            return pl.BlockSpec((1, *x.shape[1:]), lambda example: (example, 0, 0))

        here = [jax.ShapeDtypeStruct((len(arrays[0]), *x.shape[1:]), x.dtype) for x in results]
        needed = _needed(arrays[0].shape[1], max(x.shape[2] for x in arrays))
        call = pl.pallas_call(
            body,
            grid=(len(arrays[0]),),
            in_specs=[pl.BlockSpec(inverse.shape, lambda _: (0, 0)), *map(block, arrays)],
            out_specs=[block(x) for x in here],
            out_shape=here,
            compiler_params=pltpu.CompilerParams(
                dimension_semantics=("parallel",), vmem_limit_bytes=max(needed * 6 // 5, 16 << 20)
            ),
        )
        return tuple(call(inverse, *arrays))

    return on_each_device(kernel, mesh, inverse[:, None].astype(jnp.float32), arrays, len(results))


def _forward(num_heads: int, p: int, epsilons: tuple[float, float], inverse: Any, q: Any, k: Any, v: Any, out: Any):
    """One example: references to (C, 1) and, behind an axis of 1, to (C, N) and (C, M)."""
    of_map, of_normaliser = epsilons
    v, dtype = v[0], out.dtype
    q, k = (_map(x[0], inverse[...], p, of_map)[0].astype(dtype) for x in (q, k))
    for rows in _heads(len(q), num_heads):
        _, z = _normaliser(q[rows], k[rows], of_normaliser)
        context = _dot(v[rows], k[rows], 1, 1).astype(dtype)  # (e, d)
        out[0, rows] = (_dot(context, q[rows], 1, 0) * (z / k.shape[1])).astype(dtype)


def _backward(
    num_heads: int,
    p: int,
    epsilons: tuple[float, float],
    inverse: Any,
    q: Any,
    k: Any,
    v: Any,
    gradient: Any,
    of_q: Any,
    of_k: Any,
    of_v: Any,
    of_inverse: Any,
) -> None:
    """With out = z A, A = C q / M, z = 1 / (mean . q + epsilon): dz = -z q . (C^T z g / M), and so A is not needed."""
    of_map, of_normaliser = epsilons
    q, k, v, gradient, inverse = q[0], k[0], v[0], gradient[0], inverse[...]
    dtype, keys = v.dtype, k.shape[1]
    mapped_q, kept_q = _map(q, inverse, p, of_map)
    mapped_k, kept_k = _map(k, inverse, p, of_map)
    mapped_q, mapped_k = mapped_q.astype(dtype), mapped_k.astype(dtype)
    of_mapped_q, of_mapped_k = [], []
    for rows in _heads(len(q), num_heads):
        wide_q = mapped_q[rows].astype(jnp.float32)
        mean, z = _normaliser(mapped_q[rows], mapped_k[rows], of_normaliser)
        context = _dot(v[rows], mapped_k[rows], 1, 1).astype(dtype)
        scaled = (gradient[rows].astype(jnp.float32) * (z / keys)).astype(dtype)
        pulled = _dot(context, scaled, 0, 0)
        of_sum = -z * _over_channels(wide_q * pulled)
        of_context = _dot(scaled, mapped_q[rows], 1, 1).astype(dtype)
        of_mean = jnp.sum(wide_q * of_sum, axis=1, keepdims=True) / keys
        of_mapped_q.append(pulled + mean * of_sum)
        of_mapped_k.append(_dot(of_context, v[rows], 0, 0) + of_mean)
        of_v[0, rows] = _dot(of_context, mapped_k[rows], 1, 0).astype(dtype)
    of_q[0], by_q = _map_backward(jnp.concatenate(of_mapped_q), q, inverse, p, of_map, kept_q)
    of_k[0], by_k = _map_backward(jnp.concatenate(of_mapped_k), k, inverse, p, of_map, kept_k)
    of_inverse[0] = by_q + by_k


def _heads(channels: int, num_heads: int) -> list[slice]:
    width = channels // num_heads
    return [slice(head * width, (head + 1) * width) for head in range(num_heads)]


def _normaliser(q: jax.Array, k: jax.Array, epsilon: float) -> tuple[jax.Array, jax.Array]:
    """The mean key (d, 1), and 1 / (q . mean + epsilon), (1, N)."""
    mean = jnp.mean(k.astype(jnp.float32), axis=1, keepdims=True)
    return mean, 1 / (_over_channels(q.astype(jnp.float32) * mean) + epsilon)


def _map(x: jax.Array, inverse: jax.Array, p: int, epsilon: float) -> tuple[jax.Array, tuple]:
    """`focused_map` of columns (C, N), and what its derivative uses."""
    x = (jnp.maximum(x.astype(jnp.float32), 0) + epsilon) * inverse
    squares = _over_channels(x * x)
    unit = x * jax.lax.rsqrt(squares)
    below = unit
    for _ in range(p - 2):
        below = below * unit
    power = below * unit
    factor = jax.lax.rsqrt(_over_channels(power * power))
    return power * (factor * jnp.sqrt(squares)), (unit, below, power, factor)


def _map_backward(
    gradient: jax.Array, x: jax.Array, inverse: jax.Array, p: int, epsilon: float, kept: tuple
) -> tuple[jax.Array, jax.Array]:
    """`focused._map_backward` for vectors of length 1: gradients of x (C, N) and of `inverse` (C, 1)."""
    unit, below, power, factor = kept
    along = _over_channels(gradient * power)
    slope = p * below * (gradient - power * (along * factor * factor)) + unit * along
    slope = slope * factor
    wide = x.astype(jnp.float32)
    of_inverse = jnp.sum(slope * (jnp.maximum(wide, 0) + epsilon), axis=1, keepdims=True)
    return jnp.where(wide > 0, slope * inverse, 0).astype(x.dtype), of_inverse


def _over_channels(x: jax.Array) -> jax.Array:
    return jnp.sum(x, axis=0, keepdims=True)


def _dot(a: jax.Array, b: jax.Array, of_a: int, of_b: int) -> jax.Array:
    """The sum over axis `of_a` of a and `of_b` of b, in float32."""
    return jax.lax.dot_general(a, b, (((of_a,), (of_b,)), ((), ())), preferred_element_type=jnp.float32)
