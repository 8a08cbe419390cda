"""One layer of attention over the number of tokens: time and memory of every attention there is, and of softmax.

A layer is all from tokens x (B, N, C) of a square grid to its result, projections included; or, as its core, what lies
between the projections, for attentions that have streams.
"""

import math
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from flatten_jax.attention import Site, attention_class, make_attention
from flatten_jax.bench.timing import Spread, interleaved, ratios
from flatten_jax.hosts import LinearAttention
from flatten_jax.ops.dense import affine
from flatten_jax.runtime import compiler_options

TOKENS = (196, 784, 3136, 12544, 16384)
CHANNELS, HEADS = 384, 6
ATTENTIONS = ("focused", "linear", "softmax")
DIRECTIONS = ("forward", "forward + backward")
PLAIN = "softmax, plain"
LIMIT = 0.6  # of the memory that is free: the count of XLA leaves out what else the process holds

Layer = Callable[..., jax.Array]  # of variables and of inputs (B, N, ·)


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


def layers(
    tokens: int,
    dtype: Any,
    channels: int = CHANNELS,
    num_heads: int = HEADS,
    attentions: Sequence[str] = ATTENTIONS,
    core: bool = False,
) -> dict[str, tuple[Layer, Any, list[jax.ShapeDtypeStruct]]]:
    """Name -> (function of variables and inputs, shapes of the variables, shapes of the inputs of one example).

    Args:
        attentions: names of the table; the forms of softmax that others use are there besides. Those that use what an
            attention before them gave are left out.
        core: without the projections; attentions without streams have no core and are left out.
    """
    grid = (side(tokens),) * 2
    x = jax.ShapeDtypeStruct((1, tokens, channels), dtype)
    found: dict[str, tuple[Layer, Any, list[jax.ShapeDtypeStruct]]] = {}
    for name in attentions:
        if attention_class(name).takes_before:
            continue  # it has no meaning alone
        if not core:
            layer = LinearAttention(name, num_heads, dtype=jnp.dtype(dtype))
            variables = jax.eval_shape(lambda layer=layer: layer.init(jax.random.key(0), jnp.zeros(x.shape), grid))
            found[name] = partial(_apply_layer, layer, grid), variables, [x]
        elif attention_class(name).streams:
            attention = make_attention(name, num_heads, jnp.dtype(dtype))
            widths = attention.widths(channels)
            inputs = [x, *(jax.ShapeDtypeStruct((1, tokens, widths[c]), dtype) for c in attention.streams)]
            init = partial(attention.init, jax.random.key(0))
            variables = jax.eval_shape(lambda *a, init=init: init(a[0], Site(grid), *a[1:]), *inputs)
            found[name] = partial(_apply_core, attention, grid), variables, inputs
    fused = fused_implementation(dtype)
    others = {
        PLAIN: partial(plain_softmax, num_heads=num_heads),
        "softmax, fused (cuDNN)" if fused == "cudnn" else "softmax, jax.nn (XLA)": partial(
            library_softmax, num_heads=num_heads, implementation=fused
        ),
    }
    projections = {
        "params": {
            name: {
                "kernel": jax.ShapeDtypeStruct((channels, width), jnp.float32),
                "bias": jax.ShapeDtypeStruct((width,), jnp.float32),
            }
            for name, width in (("qkv", 3 * channels), ("proj", channels))
        }
    }
    for name, function in others.items():
        if core:
            found[name] = (lambda _, x, q, k, v, function=function: function(q, k, v)), {}, [x] * 4
        else:
            found[name] = partial(_between_projections, function), projections, [x]
    return found


def _apply_layer(layer: Any, grid: tuple[int, int], variables: Any, x: jax.Array) -> jax.Array:
    return layer.apply(variables, x, grid)


def _apply_core(attention: Any, grid: tuple[int, int], variables: Any, x: jax.Array, *streams: jax.Array) -> jax.Array:
    return attention.apply(variables, x, Site(grid), *streams)


def _between_projections(function: Callable[..., jax.Array], variables: Any, x: jax.Array) -> jax.Array:
    qkv, proj = (variables["params"][name] for name in ("qkv", "proj"))
    streams = jnp.split(affine(x, qkv["kernel"], qkv["bias"]), 3, axis=-1)
    return affine(function(*streams), proj["kernel"], proj["bias"])


def sweep(
    *,
    tokens: Sequence[int] = TOKENS,
    batch_size: int = 1,
    dtype: Any = jnp.float32,
    rounds: int = 7,
    memory_limit: float | None = None,
    channels: int = CHANNELS,
    num_heads: int = HEADS,
    attentions: Sequence[str] = ATTENTIONS,
    core: bool = False,
) -> Iterator[dict[str, Any]]:
    """Rows of every attention at every N in both directions, as they are measured; those of one N take turns.

    Args:
        tokens: the N, squares.
        memory_limit: bytes; what needs more by XLA's count is compiled and not run. Default: 60 % of what is free.
        attentions, core: see `layers`.

    Yields:
        attention, N, direction, batch, dtype; ms (Spread) of a call, or why it was not run; MiB of temporaries and
        results by XLA's count, of parameters and inputs not; "x softmax, plain" (Spread): how many times faster.
    """
    for n in tokens:
        for direction in DIRECTIONS:
            contestants = layers(n, dtype, channels, num_heads, attentions, core)
            measured, seconds = contest(contestants, direction, batch_size, rounds=rounds, memory_limit=memory_limit)
            for name, row in measured.items():
                about = {"attention": name, "N": n, "direction": direction, "batch": batch_size}
                about["dtype"] = jnp.dtype(dtype).name
                row = about | {key: value for key, value in row.items() if key != "compile s"}
                if name in seconds and PLAIN in seconds:
                    row[f"x {PLAIN}"] = ratios(seconds, PLAIN, name)
                yield row


def contest(
    contestants: dict[str, tuple[Layer, Any, list[jax.ShapeDtypeStruct]]],
    direction: str,
    batch_size: int = 1,
    *,
    rounds: int,
    memory_limit: float | None = None,
    left_out: Callable[[str], str] = lambda name: "",
    at_least: float = 0.2,
) -> tuple[dict[str, dict[str, Any]], dict[str, list[float]]]:
    """All of `layers` in turn, in one direction.

    Args:
        memory_limit: see `sweep`.
        left_out: why one of them is not even compiled; "" where it is.
        at_least: seconds, see `timing.interleaved`.

    Returns:
        ({name: ms (Spread) of a call, or why it was not run; MiB, compile s}, {name: seconds a call, in each round}).
    """
    limit = LIMIT * free_memory() if memory_limit is None else memory_limit
    calls, rows, arrays = {}, {}, {}
    for name, (layer, variables, inputs) in contestants.items():
        rows[name] = row = {"ms": left_out(name)}
        if row["ms"]:
            continue
        inputs = [jax.ShapeDtypeStruct((batch_size, *x.shape[1:]), x.dtype) for x in inputs]
        began = time.perf_counter()
        try:
            compiled = _compile(layer, direction, variables, inputs)
        except jax.errors.JaxRuntimeError as error:  # a GPU's compiler tries kernels out
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            row["ms"] = "not run: no memory to compile"
            continue
        row["compile s"] = time.perf_counter() - began
        memory = compiled.memory_analysis()
        size = memory.temp_size_in_bytes + memory.output_size_in_bytes
        row["MiB"] = size / 2**20
        needed = size + memory.argument_size_in_bytes
        if needed > limit:
            row["ms"] = f"not run: needs {needed / 2**30:.3g} GiB"
        else:
            calls[name] = partial(_run, compiled, _inputs(compiled, arrays))
    seconds = interleaved(calls, rounds=rounds, at_least=at_least)
    for name, took in seconds.items():
        rows[name]["ms"] = Spread.of([1e3 * s for s in took])
    return rows, seconds


def _compile(layer: Layer, direction: str, variables: Any, inputs: Sequence[jax.ShapeDtypeStruct]) -> Any:
    if direction == "forward":
        return jax.jit(layer, compiler_options=compiler_options()).lower(variables, *inputs).compile()
    out = jax.eval_shape(layer, variables, *inputs)

    def both(variables: Any, inputs: Any, cotangent: jax.Array) -> tuple[jax.Array, Any]:
        state = {name: tree for name, tree in variables.items() if name != "params"}

        def of_parameters(params: Any, *inputs: jax.Array) -> jax.Array:
            return layer({**state, "params": params}, *inputs)

        result, pull = jax.vjp(of_parameters, variables.get("params", {}), *inputs)
        return result, pull(cotangent)

    return jax.jit(both, compiler_options=compiler_options()).lower(variables, inputs, out).compile()


def _inputs(compiled: Any, arrays: dict[Any, jax.Array] | None = None) -> Any:
    """Noise for every argument, also the variables: nothing that is computed here takes longer for other values.

    Args:
        arrays: to be used again, as many layers have arguments of the same shapes, which need be in memory once. Those
            of one call are different arrays: a cache would hold fewer bytes than the layer reads.
    """
    leaves, tree = jax.tree.flatten(compiled.args_info[0])
    arrays, seen = {} if arrays is None else arrays, Counter()

    def made(x: Any) -> jax.Array:
        key = x.shape, x.dtype
        seen[key] += 1
        if (*key, seen[key]) not in arrays:
            noise = np.random.default_rng(len(arrays)).normal(size=x.shape)
            arrays[*key, seen[key]] = jnp.asarray(noise.astype(np.float32), x.dtype)
        return arrays[*key, seen[key]]

    return jax.tree.unflatten(tree, map(made, leaves))


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
    """What the sweep says of each attention of linear cost: its growth, and where it overtakes each that is not.

    Returns:
        rows with attention, direction; "time ~ N^" and "memory ~ N^", the exponents between the two largest N; and for
        each softmax "faster than ... from N": the smallest N from which its median is lower at all larger ones too.
    """
    linear = {row["attention"] for row in rows if "," not in row["attention"]}
    linear = {name for name in linear if attention_class(name).linear_cost}
    names = list(dict.fromkeys(row["attention"] for row in rows))
    said = []
    for direction in dict.fromkeys(row["direction"] for row in rows):
        ms, mib = ({name: curve(rows, name, direction, key) for name in names} for key in ("ms", "MiB"))
        for name in names:
            if name not in linear:
                continue
            row = {"attention": name, "direction": direction}
            row |= {"time ~ N^": _exponent(ms[name]), "memory ~ N^": _exponent(mib[name])}
            for other in names:
                if other not in linear:
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
