"""The matrix of any attention, found by asking it: how much each output takes of each value, by differentiation.

Nothing here knows a mechanism. For fixed queries, keys and gates most are linear in their values, convolutions
included, and the derivative is the matrix. Reverse mode gives its rows one by one, so a large one need not be whole.
"""

from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from flatten_jax.attention import Attention, Site

_AT_ONCE = 2**24  # numbers in the gradients that are computed together


@flax.struct.dataclass
class Call:
    """A call of an attention: the module and a convolution of v that its host adds (CSwin's LePE), and their arrays.

    Attributes:
        attention, variables: the attention.
        x, site, streams: what it is called with, E examples; streams by their letters.
        local, local_variables: the convolution, or None.
    """

    attention: Attention = flax.struct.field(pytree_node=False)
    variables: Mapping[str, Any]
    x: jax.Array
    site: Site
    streams: Mapping[str, jax.Array]
    local: nn.Module | None = flax.struct.field(pytree_node=False, default=None)
    local_variables: Mapping[str, Any] | None = None

    def examples(self, which: slice) -> "Call":
        """The same for some of the examples."""

        def of_site(shared: jax.Array) -> jax.Array:
            return shared if len(shared) == 1 else shared[np.arange(len(self.x))[which] % len(shared)]

        streams = {letter: stream[which] for letter, stream in self.streams.items()}
        return self.replace(x=self.x[which], site=jax.tree.map(of_site, self.site), streams=streams)

    def with_values(self, v: jax.Array) -> "Call":
        """The same with other values."""
        return self.replace(streams={**self.streams, "v": v})


@jax.jit
def output(call: Call) -> jax.Array:
    """(E, N, C) what the attention gives, the host's convolution added."""
    with jax.default_matmul_precision("highest"):
        streams = (call.streams[letter] for letter in call.attention.streams)
        out = call.attention.apply(call.variables, call.x, call.site, *streams)
        if call.local is None:
            return out
        v = call.streams["v"].reshape(-1, *call.site.grid, call.streams["v"].shape[2])
        return out + call.local.apply(call.local_variables, v).reshape(out.shape)


@jax.jit
def rows(call: Call, tokens: jax.Array, outputs: jax.Array, values: jax.Array) -> jax.Array:
    """Rows of the derivative of the output with respect to the values v.

    Args:
        tokens: (R,) the outputs n whose rows are wanted.
        outputs, values: (S, C) and (S, C of v): weights of their channels, for S matrices.

    Returns:
        (E, S, R, M): the sum over channels c and e of outputs[s, c] d output[n, c] / d v[m, e] values[s, e].
    """

    def of(gradient: jax.Array, weights: jax.Array) -> jax.Array:
        return gradient @ weights

    asked = jnp.tile(tokens, len(outputs)), *(jnp.repeat(a, len(tokens), axis=0) for a in (outputs, values))
    found = _pulled(lambda v: output(call.with_values(v)), call.streams["v"], of, *asked)
    return found.reshape(len(outputs), len(tokens), *found.shape[1:]).transpose(2, 0, 1, 3)


@jax.jit
def token_rows(call: Call, tokens: jax.Array) -> jax.Array:
    """(E, R, N): |d output[n] / d x[m]|, Frobenius norms over channels, for outputs n in `tokens` (R,)."""

    def of(gradient: jax.Array, _: None) -> jax.Array:
        return (gradient**2).sum(axis=2)

    channels = jnp.eye(jax.eval_shape(output, call).shape[2])
    asked = jnp.repeat(tokens, len(channels)), jnp.tile(channels, (len(tokens), 1)), None
    found = _pulled(lambda x: output(call.replace(x=x)), call.x, of, *asked)
    return jnp.sqrt(found.reshape(len(tokens), len(channels), *found.shape[1:]).sum(axis=1)).swapaxes(0, 1)


def _pulled(function: Callable, at: jax.Array, of: Callable, tokens: jax.Array, outputs: jax.Array, more: Any) -> Any:
    """of(gradient of outputs[i] . output[tokens[i]] with respect to `at`, more[i]), for all i."""
    out, pull = jax.vjp(function, at)

    def row(asked: tuple[jax.Array, ...]) -> jax.Array:
        token, weights, further = asked
        return of(pull(jnp.zeros_like(out).at[:, token].set(weights))[0], further)

    return jax.lax.map(row, (tokens, outputs, more), batch_size=max(1, _AT_ONCE // at.size))


def is_linear(call: Call) -> bool:
    """Whether the output is linear in v, plus a constant: whether its derivative is the same at other values."""
    v = call.streams["v"]
    other = jax.random.normal(jax.random.key(0), v.shape) * (v.std() or 1)
    here, there = (np.asarray(_random_gradient(call, values)) for values in (v, other))
    return bool(np.abs(here - there).max() <= 1e-5 * np.abs(here).max())


@jax.jit
def _random_gradient(call: Call, v: jax.Array) -> jax.Array:
    out, pull = jax.vjp(lambda v: output(call.with_values(v)), v)
    return pull(jax.random.normal(jax.random.key(1), out.shape))[0]
