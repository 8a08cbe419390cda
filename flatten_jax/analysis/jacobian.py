"""The matrix of any attention, found by asking it: how much each output takes of each value, by differentiation.

Nothing here knows a mechanism. For fixed queries, keys and gates most are linear in their values, convolutions
included, and the derivative is the matrix. Rows come one by one from the reverse mode, so a large matrix need not be.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from flatten_jax.attention import Attention, Site

LARGEST = 2**27  # entries of an answer: half a GiB
_AT_ONCE = 2**24  # entries of the gradients that are computed together


class Inputs(NamedTuple):
    """What an attention is called with, as arrays.

    Attributes:
        variables: of the attention.
        x, site, streams: E examples, streams by their letters.
        local: variables of a convolution of v that the host adds, or None.
    """

    variables: Mapping[str, Any]
    x: jax.Array
    site: Site
    streams: Mapping[str, jax.Array]
    local: Mapping[str, Any] | None = None


@partial(jax.jit, static_argnums=(0, 1))
def output(attention: Attention, local: nn.Module | None, inputs: Inputs) -> jax.Array:
    """(E, N, C): what the attention gives, with the convolution of v that its host adds (CSwin's LePE)."""
    streams = (inputs.streams[letter] for letter in attention.streams)
    with jax.default_matmul_precision("highest"):
        out = attention.apply(inputs.variables, inputs.x, inputs.site, *streams)
        if local is None:
            return out
        v = inputs.streams["v"]
        return out + local.apply(inputs.local, v.reshape(-1, *inputs.site.grid, v.shape[2])).reshape(out.shape)


@partial(jax.jit, static_argnums=(0, 1))
def rows(
    attention: Attention,
    local: nn.Module | None,
    inputs: Inputs,
    tokens: jax.Array,
    outputs: jax.Array,
    values: jax.Array,
) -> jax.Array:
    """Rows of matrices of an attention in its values v, each for a set of channels.

    Args:
        tokens: (R,) the queries n whose rows are wanted.
        outputs: (S, C) weights of the output's channels in each set.
        values: (S, C of v) of those of v.

    Returns:
        (E, S, R, M), the sum over channels c and e of outputs[c] d output[n, c] / d v[m, e] values[e].
    """

    def row(pull: Callable, shape: tuple[int, ...], asked: tuple[jax.Array, ...]) -> jax.Array:
        token, out, v = asked
        return pull(jnp.zeros(shape).at[:, token].set(out))[0] @ v

    asked = (jnp.tile(tokens, len(outputs)), *(jnp.repeat(a, len(tokens), axis=0) for a in (outputs, values)))
    found = _map(partial(_of_values, attention, local, inputs), inputs.streams["v"], row, asked)  # (S R, E, M)
    return found.reshape(len(outputs), len(tokens), *found.shape[1:]).transpose(2, 0, 1, 3)


@partial(jax.jit, static_argnums=(0,))
def token_rows(attention: Attention, inputs: Inputs, tokens: jax.Array) -> jax.Array:
    """(E, R, N): |d output[n] / d x[m]|, the Frobenius norm over channels, for an attention that has no values.

    Args:
        tokens: (R,) the outputs n.
    """

    def of_tokens(x: jax.Array) -> jax.Array:
        return output(attention, None, inputs._replace(x=x))

    def squares(pull: Callable, shape: tuple[int, ...], asked: tuple[jax.Array, ...]) -> jax.Array:
        token, channel = asked
        return (pull(jnp.zeros(shape).at[:, token, channel].set(1))[0] ** 2).sum(axis=2)

    channels = jax.eval_shape(of_tokens, inputs.x).shape[2]
    asked = (jnp.repeat(tokens, channels), jnp.tile(jnp.arange(channels), len(tokens)))
    found = _map(of_tokens, inputs.x, squares, asked)
    return jnp.sqrt(found.reshape(len(tokens), channels, *found.shape[1:]).sum(axis=1)).swapaxes(0, 1)


def _map(function: Callable, at: jax.Array, row: Callable, asked: tuple[jax.Array, ...]) -> jax.Array:
    """row(pull, shape of the output, one of `asked`) for each of them, where pull is the derivative's transpose."""
    out, pull = jax.vjp(function, at)
    return jax.lax.map(partial(row, pull, out.shape), asked, batch_size=max(1, _AT_ONCE // at.size))


def is_linear(attention: Attention, local: nn.Module | None, inputs: Inputs) -> bool:
    """Whether the output is linear in v, plus a constant: whether its derivative is the same at other values."""
    v = inputs.streams["v"]
    other = jax.random.normal(jax.random.key(0), v.shape) * (v.std() or 1)
    here, there = (np.asarray(_pulled(attention, local, inputs, values)) for values in (v, other))
    return bool(np.abs(here - there).max() <= 1e-5 * np.abs(here).max())


@partial(jax.jit, static_argnums=(0, 1))
def _pulled(attention: Attention, local: nn.Module | None, inputs: Inputs, v: jax.Array) -> jax.Array:
    """What the derivative's transpose at v makes of a random output."""
    out, pull = jax.vjp(partial(_of_values, attention, local, inputs), v)
    return pull(jax.random.normal(jax.random.key(1), out.shape))[0]


def _of_values(attention: Attention, local: nn.Module | None, inputs: Inputs, v: jax.Array) -> jax.Array:
    return output(attention, local, inputs._replace(streams={**inputs.streams, "v": v}))
