"""What a layer of each attention costs: size, time, memory, compile time, all taking turns; nothing is trained.

DIR/costs.json holds groups: one width, dtype, N and direction each, in which every attention was measured in turn. A
group that is there is not measured again.
"""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from flatten_jax import paths
from flatten_jax.bench import attention as bench
from flatten_jax.bench.report import commit, hardware
from flatten_jax.bench.timing import Spread, ratios
from flatten_jax.counted import counted
from flatten_jax.models.flops import products

FILE = "costs.json"
REFERENCE = "linear"
AT_LEAST = {"cpu": 0.2}  # seconds of a measurement; accelerators are not shared with other programs
OF_A_MACHINE = ("device", "processor", "cores")
Say = Callable[[str], None]


class Block(NamedTuple):
    """A part of the grid: a width and its heads, a dtype, the N, and how many tokens all images have together."""

    channels: int
    heads: int
    dtype: str
    tokens: tuple[int, ...]
    together: int = 1

    def images(self, n: int) -> int:
        return max(1, self.together // n)


TOKENS = (196, 784, 3136, 16384)
MAIN = Block(bench.CHANNELS, bench.HEADS, "float32", TOKENS)
# The other width and dtype at one N, which is what half an hour of two CPU cores allows; and all.
GRID = (MAIN, MAIN._replace(dtype="bfloat16", tokens=(784,)), Block(192, 3, "float32", (784,)))
FULL = tuple(Block(c, h, dtype, bench.TOKENS) for c, h in ((384, 6), (192, 3)) for dtype in ("float32", "bfloat16"))


def grid(
    full: bool = False,
    tokens: Sequence[int] | None = None,
    dtype: str | None = None,
    together: int = 1,
) -> tuple[Block, ...]:
    """The default grid, or the full one; with other N, which have to be squares, of one dtype alone, of more images."""
    blocks = FULL if full else GRID if dtype is None else (MAIN._replace(dtype=dtype),)
    for n in tokens or ():
        bench.side(n)
    changes = {"together": together} | ({} if tokens is None else {"tokens": tuple(sorted(set(tokens)))})
    return tuple(block._replace(**changes) for block in blocks if dtype in (None, block.dtype))


def measure(
    out: Path,
    attentions: Sequence[str],
    blocks: Sequence[Block],
    *,
    rounds: int = 3,
    seconds: float = 2.0,
    memory: float | None = None,
    say: Say = print,
) -> None:
    """Every group of the grid that `out` does not hold yet, written as it is done.

    Args:
        attentions: names; `linear`, softmax in its three forms are there besides.
        seconds: of a call; what would take longer, by its time at the N before and its multiply-adds, is left out.
        memory: bytes, see `bench.attention.sweep`.

    Raises:
        ValueError: `out` holds timings of another machine, or of other attentions.
    """
    if rounds < 1:
        raise ValueError(f"{rounds=} must be at least 1")
    names = list(dict.fromkeys((REFERENCE, "softmax", *attentions)))
    groups = read(out)
    made_on, code, of = hardware(), commit(), {"attentions": names}
    for group in groups:
        here = {fact: made_on[fact] for fact in OF_A_MACHINE} | of
        there = {fact: group["made_on"][fact] for fact in OF_A_MACHINE} | {"attentions": group["attentions"]}
        for block in blocks:
            if key(group) in {(*block[:3], n, direction) for n in block.tokens for direction in bench.DIRECTIONS}:
                here["batch"], there["batch"] = block.images(group["N"]), group.get("batch", 1)
        if here != there:
            differing = ", ".join(fact for fact in here if here[fact] != there[fact])
            raise ValueError(f"{out / FILE} holds timings of other {differing}: take another --out")
    done = {key(group) for group in groups}
    jax.config.update("jax_enable_compilation_cache", False)  # what compiling takes is measured
    for block in blocks:
        for n in block.tokens:
            sizes: dict[str, dict[str, Any]] = {}
            for direction in bench.DIRECTIONS:
                about = {"channels": block.channels, "heads": block.heads, "dtype": block.dtype}
                about |= {"N": n, "direction": direction, "batch": block.images(n)}
                if key(about) in done:
                    continue
                contestants, refused = _contestants(block, n, names)
                sizes = sizes or {name: _size(*contestants[name]) for name in contestants}
                too_slow = partial(_too_slow, groups, about, sizes, seconds)
                limits = {"rounds": rounds, "memory_limit": memory, "left_out": too_slow}
                limits["at_least"] = AT_LEAST.get(jax.default_backend(), 0.05)
                rows, took = bench.contest(contestants, direction, block.images(n), **limits)
                for name, row in rows.items():
                    row |= sizes[name]
                    if name in took:
                        row[f"time / {REFERENCE}"] = ratios(took, name, REFERENCE)
                rows |= {name: {"ms": said} for name, said in refused.items()}
                listed = [{"attention": name, **row} for name, row in rows.items()]
                groups.append({**about, **of, "rounds": rounds, "rows": listed, "made_on": made_on, "commit": code})
                _write(out / FILE, groups)
                jax.clear_caches()
                say(f"C {block.channels}, {block.dtype}, N {n:,}, {direction}: {len(took)} of {len(rows)} timed")


def read(out: Path) -> list[dict[str, Any]]:
    """The groups of a folder, or of the JSON of an earlier page, spreads restored; [] where there are none."""

    def restore(value: dict[str, Any]) -> Any:
        return Spread(**value) if value.keys() == {"median", "low", "high"} else value

    if out.is_file():
        return json.loads(out.read_text(), object_hook=restore)["costs"]
    path = out / FILE
    return json.loads(path.read_text(), object_hook=restore) if path.exists() else []


def read_compiled(out: Path) -> list[dict[str, Any]]:
    """What `compile_elsewhere` wrote into a folder, or what the JSON of an earlier page has of it."""
    if out.is_file():
        return json.loads(out.read_text())["compiled"]
    return [json.loads(path.read_text()) for path in sorted(out.glob("compiled_*.json"))]


def drawn(groups: Sequence[dict[str, Any]]) -> Block:
    """The part of the grid that curves are of: the first that was measured."""
    return Block(*key(groups[0])[:3], ())


def curve(
    groups: Sequence[dict[str, Any]], attention: str, column: str, direction: str, block: Block = MAIN
) -> dict[int, float]:
    """N -> the value of a column, the median of a spread, ascending in N; what was not measured is left out."""
    found = {}
    for group in groups:
        if key(group)[:3] == block[:3] and group["direction"] == direction:
            for row in group["rows"]:
                value = row.get(column)
                if row["attention"] == attention and not isinstance(value, str | None):
                    found[group["N"]] = value.median if isinstance(value, Spread) else value
    return dict(sorted(found.items()))


def crossing(own: dict[int, float], other: dict[int, float]) -> float | None:
    """The N from which `own` is the lower one at all larger N too, by straight lines between logarithms.

    The smallest N that was measured where it always is; None where it never is, or is not at the largest N of both.
    """
    shared = sorted(own.keys() & other.keys())
    ahead = {n: math.log(other[n] / own[n]) for n in shared}
    if not shared or ahead[shared[-1]] <= 0:
        return None
    behind = [n for n in shared if ahead[n] <= 0]
    if not behind:
        return shared[0]
    low = behind[-1]
    high = shared[shared.index(low) + 1]
    share = -ahead[low] / (ahead[high] - ahead[low])
    return low * (high / low) ** share


def key(about: dict[str, Any]) -> tuple:
    """Of a group: channels, heads, dtype, N, direction."""
    return tuple(about[part] for part in ("channels", "heads", "dtype", "N", "direction"))


def _contestants(block: Block, n: int, names: Sequence[str]) -> tuple[dict[str, Any], dict[str, str]]:
    """What `bench.attention.layers` gives, and why an attention has no layer."""
    contestants, refused = {}, {}
    for name in names:
        try:
            found = bench.layers(n, jnp.dtype(block.dtype), block.channels, block.heads, [name])
        except ValueError as error:
            refused[name] = f"does not fit: {error}"
            continue
        if name not in found:
            refused[name] = "has no meaning alone: it uses what an attention before it gave"
        contestants |= found
    return contestants, refused


def _size(layer: Any, variables: Any, inputs: Sequence[jax.ShapeDtypeStruct]) -> dict[str, int]:
    traced = jax.make_jaxpr(layer)(variables, *inputs)
    leaves = jax.tree.leaves(variables.get("params", {}))
    counted = sum(count for _, count in products(traced.jaxpr))
    return {"parameters": sum(leaf.size for leaf in leaves), "multiply-adds": counted}


def _too_slow(
    groups: Sequence[dict[str, Any]], about: dict[str, Any], sizes: dict[str, Any], limit: float, name: str
) -> str:
    """Why a case is left out: what it took at the largest N before, times the growth of its multiply-adds."""
    block = Block(about["channels"], about["heads"], about["dtype"], ())
    before = curve(groups, name, "ms", about["direction"], block)
    work = curve(groups, name, "multiply-adds", about["direction"], block)
    images = {group["N"]: group.get("batch", 1) for group in groups if key(group)[:3] == block[:3]}
    last = max((n for n in before if n < about["N"]), default=None)
    if last is None:
        return ""
    growth = sizes[name]["multiply-adds"] * about["batch"] / (work[last] * images[last])
    expected = before[last] / 1e3 * growth
    return f"left out: about {expected:.2g} s a call" if expected > limit else ""


def compile_elsewhere(
    out: Path, attentions: Sequence[str], topology: str, together: int = 1, say: Say = print, tokens: int = 3136
) -> None:
    """What the compiler of a TPU or GPU that is not there makes of a layer's forward pass, on one chip, in bfloat16.

    As many images at a time as have about `together` tokens, at least one. One may lie on the chip
    whole, and move few bytes.

    Writes compiled_TOPOLOGY.json, after each attention: bytes read from main memory and written to it, as `plan --roof`
    counts them, operations by XLA's cost analysis (none on GPUs), MiB of temporaries and results, fusions and other
    kernels.

    Raises:
        ValueError: the topology cannot be described, since its compiler is not installed for instance; or the file has
            rows of other images.
    """
    from flatten_jax.bench import gpus, hlo
    from flatten_jax.bench.plan import topology_devices

    one = jax.sharding.SingleDeviceSharding(topology_devices(topology)[0])

    def on_chip(x: Any, shape: tuple[int, ...] | None = None) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(x.shape if shape is None else shape, x.dtype, sharding=one)

    options = gpus.COMPILER_OPTIONS if topology.partition(":")[0] in gpus.GPUS else None
    block = MAIN._replace(dtype="bfloat16", together=together)
    images = block.images(tokens)
    names = list(dict.fromkeys((REFERENCE, "softmax", *attentions)))
    contestants, _ = _contestants(block, tokens, names)
    path = out / f"compiled_{topology.replace(':', '_')}.json"
    content = json.loads(path.read_text()) if path.exists() else {"topology": topology, "images": images, "rows": []}
    if (there := content.get("images", 0)) != images:  # 0: of a version that counted bytes otherwise
        raise ValueError(f"{path} has rows of {counted(there, 'image')}, not {images}: take another --out")
    content |= {"made_on": hardware(), "commit": commit()}
    done = {row["attention"] for row in content["rows"]}
    for name, (layer, variables, inputs) in contestants.items():
        if name in done:
            continue
        row: dict[str, Any] = {"attention": name, "N": tokens, "dtype": block.dtype}
        args = jax.tree.map(on_chip, variables), *(on_chip(x, (images, *x.shape[1:])) for x in inputs)
        try:
            compiled = jax.jit(layer).lower(*args).compile(options)
        except (jax.errors.JaxRuntimeError, NotImplementedError, ValueError) as error:
            row["said"] = str(error).splitlines()[0][:200]
        else:
            cost, memory, text = compiled.cost_analysis() or {}, compiled.memory_analysis(), compiled.as_text()
            moved = sum(step.bytes * step.times for step in hlo.Program(text).steps())
            row |= {"bytes": float(moved), "flops": cost.get("flops")}
            row["MiB"] = (memory.temp_size_in_bytes + memory.output_size_in_bytes) / 2**20
            row |= {"fusions": text.count(" fusion("), "custom calls": text.count(" custom-call(")}
        content["rows"].append(row)
        _write(path, content)
        say(f"{topology}: {name}, {row.get('said') or str(row['fusions']) + ' fusions'}")


def _write(path: Path, content: Any) -> None:
    paths.write_text(path, json.dumps(content, indent=1, default=asdict) + "\n")
