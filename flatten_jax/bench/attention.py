"""One layer of attention over the number of tokens: time and memory of every attention there is, and of softmax.

A layer is what happens between the projections, on queries, keys and values (B, N, C) of a square grid.
"""

import math
import os
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from flatten_jax.attention import MIXERS
from flatten_jax.attention.mixers import make_mixer, takes_bias
from flatten_jax.bench.timing import Spread, interleaved, ratios
from flatten_jax.runtime import compiler_options

TOKENS = (196, 784, 3136, 12544, 16384)
CHANNELS, HEADS = 384, 6
DIRECTIONS = ("forward", "forward + backward")
PLAIN = "softmax, plain"
LIMIT = 0.6  # of the memory that is free: the count of XLA leaves out what else the process holds

Layer = Callable[[Any, jax.Array, jax.Array, jax.Array], jax.Array]


def plain_softmax(q: jax.Array, k: jax.Array, v: jax.Array, num_heads: int) -> jax.Array:
    """Softmax attention with its scores (B, h, N, M) written out, the softmax in float32: what papers compare with.

    q: (B, N, C), k and v: (B, M, C) -> (B, N, C).
    """
    q, k, v = (x.reshape(*x.shape[:2], num_heads, -1) for x in (q, k, v))
    scores = jnp.einsum("bnhd,bmhd->bhnm", q, k) * q.shape[-1] ** -0.5
    weights = jax.nn.softmax(scores.astype(jnp.float32)).astype(v.dtype)
    out = jnp.einsum("bhnm,bmhd->bnhd", weights, v)
    return out.reshape(*out.shape[:2], -1)


def library_softmax(q: jax.Array, k: jax.Array, v: jax.Array, num_heads: int, implementation: str) -> jax.Array:
    """`jax.nn.dot_product_attention` by "cudnn", a fused kernel without scores in memory, or by "xla"."""
    heads = (x.reshape(*x.shape[:2], num_heads, -1) for x in (q, k, v))
    return jax.nn.dot_product_attention(*heads, implementation=implementation).reshape(q.shape)


def fused_implementation(dtype: Any) -> str:
    """ "cudnn" where it runs: on NVIDIA GPUs, in half precision; else "xla"."""
    if jax.default_backend() != "gpu":
        return "xla"
    x = jnp.zeros((1, TOKENS[0], CHANNELS), dtype)
    try:
        jax.block_until_ready(jax.jit(library_softmax, static_argnums=(3, 4))(x, x, x, HEADS, "cudnn"))
    except (ValueError, NotImplementedError, RuntimeError):  # it says so in several ways, by version and dtype
        return "xla"
    return "cudnn"


def side(tokens: int) -> int:
    """Of the square grid of so many tokens; ValueError if there is none."""
    if math.isqrt(tokens) ** 2 != tokens:
        raise ValueError(f"{tokens} tokens are no square grid; choose squares such as {', '.join(map(str, TOKENS))}")
    return math.isqrt(tokens)


def mixer_name(letter: str) -> str:
    return f"{letter} ({MIXERS[letter].__name__})"


def layers(tokens: int, dtype: Any, channels: int = CHANNELS, num_heads: int = HEADS) -> dict[str, tuple[Layer, Any]]:
    """Name -> (function of variables, q, k and v, shapes of the variables): the table's attentions, then softmax."""
    grid = (side(tokens),) * 2
    x = jax.ShapeDtypeStruct((1, tokens, channels), dtype)
    found: dict[str, tuple[Layer, Any]] = {}
    for letter in MIXERS:
        mixer = make_mixer(letter, num_heads, jnp.dtype(dtype), {})
        call = partial(_apply, mixer.apply, grid)
        found[mixer_name(letter)] = call, jax.eval_shape(partial(_apply, mixer.init, grid), jax.random.key(0), x, x, x)
    found[PLAIN] = (lambda _, q, k, v: plain_softmax(q, k, v, num_heads)), {}
    fused = fused_implementation(dtype)
    name = "softmax, fused (cuDNN)" if fused == "cudnn" else "softmax, jax.nn (XLA)"
    found[name] = (lambda _, q, k, v: library_softmax(q, k, v, num_heads, fused)), {}
    return found


def _apply(method: Callable[..., Any], grid: tuple[int, int], first: Any, q: Any, k: Any, v: Any) -> Any:
    return method(first, q, k, v, grid, grid)


def sweep(
    *,
    tokens: Sequence[int] = TOKENS,
    batch_size: int = 1,
    dtype: Any = jnp.float32,
    rounds: int = 7,
    memory_limit: float | None = None,
    channels: int = CHANNELS,
    num_heads: int = HEADS,
) -> Iterator[dict[str, Any]]:
    """Rows of every attention at every N in both directions, as they are measured; those of one N take turns.

    Args:
        tokens: the N, squares.
        memory_limit: bytes; what needs more by XLA's count is compiled and not run. Default: 60 % of what is free.

    Yields:
        attention, N, direction, batch, dtype; ms (Spread) of a call, or why it was not run; MiB of temporaries and
        results by XLA's count, of parameters and inputs not; "x softmax, plain" (Spread): how many times faster.
    """
    limit = LIMIT * free_memory() if memory_limit is None else memory_limit
    for n in tokens:
        shape = (batch_size, n, channels)
        for direction in DIRECTIONS:
            calls, sizes, refused = {}, {}, {}
            contestants = layers(n, dtype, channels, num_heads)
            for name, (layer, variables) in contestants.items():
                try:
                    compiled = _compile(layer, direction, variables, jax.ShapeDtypeStruct(shape, dtype))
                except jax.errors.JaxRuntimeError as error:  # a GPU's compiler tries kernels out
                    if "RESOURCE_EXHAUSTED" not in str(error):
                        raise
                    refused[name] = "not run: no memory to compile"
                    continue
                memory = compiled.memory_analysis()
                sizes[name] = memory.temp_size_in_bytes + memory.output_size_in_bytes
                needed = sizes[name] + memory.argument_size_in_bytes
                if needed > limit:
                    refused[name] = f"not run: needs {needed / 2**30:.3g} GiB"
                else:
                    calls[name] = partial(_run, compiled, _inputs(compiled))
            seconds = interleaved(calls, rounds=rounds)
            for name in contestants:
                row = {"attention": name, "N": n, "direction": direction, "batch": batch_size}
                row["dtype"] = jnp.dtype(dtype).name
                row["ms"] = refused.get(name) or Spread.of([1e3 * s for s in seconds[name]])
                if name in sizes:
                    row["MiB"] = sizes[name] / 2**20
                if name in seconds and PLAIN in seconds:
                    row[f"x {PLAIN}"] = ratios(seconds, PLAIN, name)
                yield row


def _compile(layer: Layer, direction: str, variables: Any, x: jax.ShapeDtypeStruct) -> Any:
    if direction == "forward":
        return jax.jit(layer, compiler_options=compiler_options()).lower(variables, x, x, x).compile()

    def both(variables: Any, q: Any, k: Any, v: Any, cotangent: Any) -> tuple[jax.Array, Any]:
        out, pull = jax.vjp(layer, variables, q, k, v)
        return out, pull(cotangent)

    return jax.jit(both, compiler_options=compiler_options()).lower(variables, x, x, x, x).compile()


def _inputs(compiled: Any) -> Any:
    """Noise for every argument, also the variables: nothing that is computed here takes longer for other values."""
    rng = np.random.default_rng(0)
    args, _ = compiled.args_info
    return jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape).astype(np.float32), x.dtype), args)


def _run(compiled: Any, inputs: Any) -> None:
    jax.block_until_ready(compiled(*inputs))


def free_memory() -> int:
    """Bytes free for arrays: of the device if it says so, else of the machine."""
    stats = jax.local_devices()[0].memory_stats()
    if stats and "bytes_limit" in stats:
        return stats["bytes_limit"] - stats["bytes_in_use"]
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def summary(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """What the sweep says of each attention without scores: its growth, and where it overtakes each with scores.

    Returns:
        rows with attention, direction; "time ~ N^" and "memory ~ N^", the exponents between the two largest N; and for
        each softmax "faster than ... from N": the smallest N from which its median is lower at all larger ones too.
    """
    without_scores = [mixer_name(letter) for letter in MIXERS if not takes_bias(letter)]
    names = list(dict.fromkeys(row["attention"] for row in rows))
    said = []
    for direction in dict.fromkeys(row["direction"] for row in rows):
        ms, mib = ({name: curve(rows, name, direction, key) for name in names} for key in ("ms", "MiB"))
        for name in names:
            if name not in without_scores:
                continue
            row = {"attention": name, "direction": direction}
            row |= {"time ~ N^": _exponent(ms[name]), "memory ~ N^": _exponent(mib[name])}
            for other in names:
                if other not in without_scores:
                    row[f"faster than {other} from N"] = _crossing(ms[name], ms[other])
            said.append(row)
    return said


def curve(rows: Sequence[dict[str, Any]], attention: str, direction: str, key: str) -> dict[int, float]:
    """N -> the value of a column, ascending in N, where there is one; the median of a spread."""
    points = {}
    for row in rows:
        value = row.get(key)
        if (row["attention"], row["direction"]) == (attention, direction) and not isinstance(value, str | None):
            points[row["N"]] = value.median if isinstance(value, Spread) else value
    return dict(sorted(points.items()))


def _exponent(points: dict[int, float]) -> float | str:
    if len(points) < 2:
        return "-"
    (n, before), (m, after) = list(points.items())[-2:]
    return math.log(after / before) / math.log(m / n)


def _crossing(own: dict[int, float], other: dict[int, float]) -> int | str:
    first: int | str = "none here"
    for n in sorted(own.keys() & other.keys(), reverse=True):
        if own[n] >= other[n]:
            break
        first = n
    return first
