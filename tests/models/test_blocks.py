"""Blocks around attentions give what official blocks give, from their own state dicts: values and gradients of x.

The slices in goldens/blocks were made as those of attentions, by
`slice_golden.py SOURCE.npz ../../models/goldens/blocks/NAME ATTENTION --heads ... --grid ... --options ...`.
"""

import json
from functools import partial

import flax.linen as nn
import jax
import numpy as np
import pytest

import flatten_jax
from flatten_jax.attention import Site, make_attention
from flatten_jax.attention.contract import on_grid
from flatten_jax.hosts import StripeAttention
from flatten_jax.models.blocks import Block, Mlp
from flatten_jax.ops.depthwise import DepthwiseConv
from flatten_jax.ops.norm import LayerNorm

from ..attention.slice_golden import STEP
from .reference import GOLDENS, state_dict


class MLLABlock(nn.Module):
    """MILA's block, whose mixer's names are its own."""

    num_heads: int

    @nn.compact
    def __call__(self, x, site):
        def residual_conv(x, name):
            return x + DepthwiseConv(x.shape[2], 3, name=name)(on_grid(x, site)).reshape(x.shape)

        norm = partial(LayerNorm, epsilon=1e-5)
        mixer = make_attention("mlla", self.num_heads)
        nn.share_scope(self, mixer)
        x = residual_conv(x, "cpe1")
        x = residual_conv(x + mixer(norm(name="norm1")(x), site), "cpe2")
        return x + Mlp(4 * x.shape[2], name="mlp")(norm(name="norm2")(x), site), None


def cswin_block(call, split_size, branches):
    host = partial(
        StripeAttention,
        call["num_heads"],
        split_size=split_size,
        branches=branches,
        attn_type=call["attention"],
        options=call["options"],
    )
    return Block(host, epsilon=1e-5, own_scope=False)


BLOCKS = {
    "agent_cswin": partial(cswin_block, split_size=2, branches=2),
    "inline_cswin": partial(cswin_block, split_size=8, branches=1),
    "mlla": lambda call: MLLABlock(call["num_heads"]),
}


@pytest.mark.parametrize("name", BLOCKS)
def test_a_block_gives_what_the_official_block_gives(name):
    with np.load(GOLDENS / "blocks" / f"{name}.npz") as file:
        golden = dict(file)
    call = json.loads(str(golden["call"]))
    block, grid = BLOCKS[name](call), tuple(call["grid"])
    x = np.random.RandomState(7).standard_normal(call["shape"]).astype(np.float32)
    variables = flatten_jax.from_torch(state_dict(json.loads(str(golden["keys"]))), block, example=x, grid=grid)
    cotangent = np.random.RandomState(8).standard_normal(call["shape"]).astype(np.float32)

    @jax.jit
    def both(x):
        y, pull = jax.vjp(lambda x: block.apply(variables, x, Site(grid))[0], x)
        return y, *pull(cotangent)

    with jax.default_matmul_precision("highest"):
        for found, expected in zip(both(x), (golden["y"], golden["dx"]), strict=True):
            found = np.asarray(found).reshape(-1)[::STEP]
            assert np.abs(found - expected).max() < 1e-5 * np.abs(expected).max()


def test_none_is_left_out():
    assert set(BLOCKS) == {path.stem for path in (GOLDENS / "blocks").glob("*.npz")}
