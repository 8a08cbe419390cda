"""The blocks of a stage, one after the other: written out, or as a loop, compiled once for blocks that are alike."""

from collections.abc import Callable, Hashable, Iterator, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from flatten_jax.ops.dense import PRODUCT
from flatten_jax.models.blocks import Block, Grid

# What a block keeps for its backward pass besides its input, if the rest is computed again.
REMAT_POLICIES = {
    "nothing": jax.checkpoint_policies.nothing_saveable,
    "products": jax.checkpoint_policies.save_only_these_names(PRODUCT),
}


def block_class(remat: bool, policy: str) -> type[Block]:
    """Block, or with `remat` Block that keeps what a key of REMAT_POLICIES says, and computes the rest again."""
    if policy not in REMAT_POLICIES:
        raise ValueError(f"remat_policy={policy!r} must be one of {', '.join(REMAT_POLICIES)}")
    return nn.remat(Block, static_argnums=(2, 3), policy=REMAT_POLICIES[policy]) if remat else Block


def run_blocks(
    blocks: Sequence[Block],
    kinds: Sequence[Hashable],
    rates: Sequence[float],
    x: jax.Array,
    grid: Grid,
    train: bool,
    *,
    scan: bool,
) -> list[jax.Array]:
    """Apply blocks in turn.

    With `scan` the parameters of blocks that are alike are stacked and looped over, so that XLA compiles them once: it
    takes a fraction of the time for a deep stage, and computes the same. Parameters keep their names either way.

    Args:
        blocks: bound modules, in order.
        kinds: of each block; equal kinds compute the same of parameters of the same shapes.
        rates: of drop-path.
        x: (B, N, C), tokens row-major on `grid` = (height, width).

    Returns:
        What each block gives, (B, N, C); with `scan` only what the last one gives.
    """
    if not scan or blocks[0].is_initializing():
        outputs = []
        for block, rate in zip(blocks, rates, strict=True):
            outputs.append(x := block(x, grid, train, rate))
        return outputs

    drops = train and any(rates)
    start = 0
    for period, repeats in repetitions(kinds):
        group = range(start, start + period * repeats)
        start = group.stop
        keys = jax.random.split(blocks[0].make_rng("dropout"), len(group)) if drops else None
        if repeats == 1:
            for i in group:
                x = blocks[i](x, grid, train, rates[i])
            continue
        unit = [blocks[i].clone(parent=None, name=None) for i in group[:period]]
        # Leaves (repeats, ...), one tree for each block of the unit.
        stacked = [
            jax.tree.map(lambda *leaves: jnp.stack(leaves), *(blocks[i].variables["params"] for i in group[j::period]))
            for j in range(period)
        ]
        noise = None
        if drops:
            noise = jnp.asarray([rates[i] for i in group]).reshape(repeats, period), keys.reshape(repeats, period)
        x = _loop(unit, stacked, noise, x, grid, train)
    return [x]


def _loop(unit: Sequence[nn.Module], stacked: Sequence, noise: tuple | None, x: jax.Array, grid: Grid, train: bool):
    def turn(x: jax.Array, inputs: tuple) -> tuple[jax.Array, None]:
        params, noise = inputs
        for j, block in enumerate(unit):
            rate, rngs = (0.0, None) if noise is None else (noise[0][j], {"dropout": noise[1][j]})
            x = block.apply({"params": params[j]}, x, grid, train, rate, rngs=rngs)
        return x, None

    return jax.lax.scan(turn, x, (stacked, noise))[0]


def repetitions(kinds: Sequence[Hashable]) -> Iterator[tuple[int, int]]:
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


def on_grid(run: Callable[..., list[jax.Array]], x: jax.Array) -> jax.Array:
    """The last output of blocks, which work on tokens, applied to a map (B, height, width, C)."""
    batch, height, width, channels = x.shape
    return run(x=x.reshape(batch, height * width, channels), grid=(height, width))[-1].reshape(x.shape)
