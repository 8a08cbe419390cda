"""The blocks of a stage, one after the other: written out, or as a loop, compiled once for blocks that are alike."""

import contextlib
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from functools import partial, reduce
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from flatten_jax.attention.contract import MAPS, Site
from flatten_jax.ops.dense import PRODUCT

# Where a caller asks for it, mutable=[SEEN], every block leaves under its path {"given": its input, "attended": what
# its attention gave}. A block that has such an input among its variables, in GIVEN, takes that one instead of its own.
# Of neither there is a trace in the program of a caller who asks for nothing.
SEEN, GIVEN = "intermediates", "given"

# What a block keeps for its backward pass besides its input, if the rest is computed again.
REMAT_POLICIES = {
    "nothing": jax.checkpoint_policies.nothing_saveable,
    "products": jax.checkpoint_policies.save_only_these_names(PRODUCT),
}


def rematerialised(block: type[nn.Module], policy: str, static_argnums: tuple[int, ...] = ()) -> type[nn.Module]:
    """`block` for which the backward pass keeps what a key of REMAT_POLICIES says, and computes the rest again.

    Args:
        static_argnums: arguments of the block that are no arrays; 0 is the block.
    """
    if policy not in REMAT_POLICIES:
        raise ValueError(f"remat_policy={policy!r} must be one of {', '.join(REMAT_POLICIES)}")
    return nn.remat(block, policy=REMAT_POLICIES[policy], static_argnums=static_argnums)


_TWINS: ContextVar[dict[tuple[str, ...], tuple[str, ...]] | None] = ContextVar("twins", default=None)


@contextlib.contextmanager
def one_of_each() -> Iterator[dict[tuple[str, ...], tuple[str, ...]]]:
    """Initialise one of the blocks of a stage that are alike, for shapes alone.

    Gives a dict that fills: path of a block that was left out -> path of the one that it is like.
    """
    token = _TWINS.set({})
    try:
        yield _TWINS.get()
    finally:
        _TWINS.reset(token)


def of_all(shapes: dict[str, Any], twins: Mapping[tuple[str, ...], tuple[str, ...]]) -> dict[str, Any]:
    """The variables of all blocks, of those that were initialised within `one_of_each`."""
    for block, like in twins.items():
        for collection in shapes.values():
            with contextlib.suppress(KeyError):  # none of its variables are in this collection
                reduce(operator.getitem, block[:-1], collection)[block[-1]] = reduce(operator.getitem, like, collection)
    return jax.tree.map(lambda leaf: leaf, shapes)  # in the order of the whole model's


def run_blocks(
    blocks: Sequence[nn.Module],
    kinds: Sequence[Any],
    rates: Sequence[float],
    x: jax.Array,
    site: Site,
    *,
    scan: bool = False,
    carry: bool = False,
) -> list[jax.Array]:
    """Apply blocks in turn. A block is `block(x, site, rate) -> (x, what its attention gave)`.

    With `scan` the variables of blocks that are alike are stacked and looped over, so that XLA compiles them once: it
    takes a fraction of the time for a deep stage, and computes the same. Variables keep their names either way.

    Args:
        blocks: bound modules, in order.
        kinds: of each block; equal kinds compute the same of variables of the same shapes.
        rates: of drop-path.
        x: (B, N, C) at `site`, or whatever else the blocks take and give.
        carry: each block's site tells what the attention of the block before gave.

    Returns:
        What each block gives, (B, N, C); with `scan` only what the last one gives.
    """
    if not scan or blocks[0].is_initializing():
        outputs, firsts, twins = [], [], _TWINS.get()
        for i, (block, kind, rate) in enumerate(zip(blocks, kinds, rates, strict=True)):
            first = next((j for j in firsts if kinds[j] == kind), None)
            if twins is not None and first is not None and isinstance(block, nn.Module):
                twins[block.scope.path] = blocks[first].scope.path
            else:
                firsts.append(i)
                x, site = _step(block, x, site, rate, carry)
            outputs.append(x)
        return outputs

    drops = site.train and any(rates)
    start = 0
    for period, repeats in repetitions(kinds):
        group = range(start, start + period * repeats)
        start = group.stop
        keys = jax.random.split(blocks[0].make_rng("dropout"), len(group)) if drops else None
        if repeats == 1:
            for i in group:
                x, site = _step(blocks[i], x, site, rates[i], carry)
            continue
        noise = None
        if drops:
            noise = jnp.asarray([rates[i] for i in group]).reshape(repeats, period), keys.reshape(repeats, period)
        x, site = _loop([blocks[group.start + j : group.stop : period] for j in range(period)], noise, x, site, carry)
    return [x]


def _step(block: Callable, x: jax.Array, site: Site, rate: float | jax.Array, carry: bool) -> tuple[jax.Array, Site]:
    if isinstance(block, nn.Module):
        block = partial(_seen, block)
    x, attended = block(x, site, rate)
    return x, site.replace(before=attended) if carry else site


def _seen(block: nn.Module, x: jax.Array, *args: Any) -> tuple[jax.Array, jax.Array]:
    """A block that says what it saw, and sees what it is told, see above."""
    if block.has_variable(GIVEN, "given"):
        x = block.get_variable(GIVEN, "given")
    asked = block.is_mutable_collection(SEEN) and not block.is_initializing()
    if asked:
        # Whoever compares two models wants the same bits of the same blocks, however else the compiler would fuse them.
        x = jax.lax.optimization_barrier(x)
    out, attended = block(x, *args)
    if asked:
        attended = jax.lax.optimization_barrier(attended)
        block.put_variable(SEEN, "given", x)
        block.put_variable(SEEN, "attended", attended)
    return out, attended


def _loop(
    alike: Sequence[Sequence[nn.Module]], noise: tuple | None, x: jax.Array, site: Site, carry: bool
) -> tuple[jax.Array, Site]:
    """Blocks of a repeated unit, those that are alike together; new running statistics are put back into each."""
    unit = [blocks[0].clone(parent=None, name=None) for blocks in alike]
    first = alike[0][0]
    mutable = [name for name in first.variables if first.is_mutable_collection(name) and name != "params"]
    mutable += [name for name in (SEEN, MAPS) if first.is_mutable_collection(name)]
    # Leaves (repeats, ...), one tree for each block of the unit.
    stacked = [jax.tree.map(lambda *leaves: jnp.stack(leaves), *(b.variables for b in blocks)) for blocks in alike]
    if carry and site.before is None:
        site = site.replace(before=jnp.zeros_like(jax.tree.leaves(x)[-1]))

    def turn(carried: tuple, inputs: tuple) -> tuple[tuple, list]:
        (x, site), (variables, noise), changed = carried, inputs, []
        for j, block in enumerate(unit):
            rate, rngs = (0.0, None) if noise is None else (noise[0][j], {"dropout": noise[1][j]})

            def apply(*args: jax.Array, j: int = j, block: nn.Module = block, rngs: dict | None = rngs) -> tuple:
                args = args[:2] if rngs is None else args  # rematerialisation would make a variable of a rate of 0
                if not mutable:
                    return block.apply(variables[j], *args, rngs=rngs, method=_seen)
                given, new = block.apply(variables[j], *args, rngs=rngs, mutable=mutable, method=_seen)
                changed.append(new)
                return given

            x, site = _step(apply, x, site, rate, carry)
        return (x, site), changed

    (x, site), changed = jax.lax.scan(turn, (x, site), (stacked, noise))
    for blocks, new in zip(alike, changed, strict=False):
        for i, block in enumerate(blocks):
            for collection, tree in jax.tree.map(lambda leaf, i=i: leaf[i], new).items():
                for name, value in tree.items():
                    block.put_variable(collection, name, value)
    return x, site


def repetitions(kinds: Sequence[Any]) -> Iterator[tuple[int, int]]:
    """(period, repeats) of the runs that a sequence is made of: "ababc" -> (2, 2), (1, 1)."""
    start = 0
    while start < len(kinds):
        runs = []
        for period in (1, 2):
            unit, repeats = kinds[start : start + period], 1
            while kinds[start + period * repeats : start + period * (repeats + 1)] == unit:
                repeats += 1
            runs.append((period, repeats))
        best = max(runs, key=lambda run: run[0] * run[1] if run[1] > 1 else 0)
        period, repeats = best if best[1] > 1 else (1, 1)
        yield period, repeats
        start += period * repeats
