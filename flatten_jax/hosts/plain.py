"""The plain host: all tokens together, one projection for all streams (DeiT); and the two steps that every host has.

A host is called as attentions are, `host(x, site) -> (B, N, C)`. It narrows the site (windows, reduced keys, a bias),
projects the streams that its attention declares, and projects the result. The attention's parameters lie beside the
host's (`attn/qkv`, `attn/scale`, ...), as in the originals, so any attention fits any host and checkpoints keep names.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from flatten_jax.attention.contract import Attention, Site
from flatten_jax.attention.table import make_attention
from flatten_jax.ops.dense import Dense
from flatten_jax.ops.initializers import NORMAL, TORCH_CONV, ConvInit
from flatten_jax.ops.platform import kernel_mesh


def project(
    attention: Attention, letters: str, x: jax.Array, initial: ConvInit = NORMAL, use_bias: bool = True
) -> dict[str, jax.Array]:
    """Streams of an attention, (B, N, ·) each, by one linear layer whose name is their letters."""
    if not letters:
        return {}
    widths = [attention.widths(x.shape[-1])[letter] for letter in letters]
    use_bias = use_bias and attention.stream_bias
    layer = Dense(sum(widths), use_bias=use_bias, dtype=attention.dtype, initial=initial, name=letters)
    if attention.streams_apart and kernel_mesh():
        streams = layer(x, widths)
    else:
        streams = jnp.split(layer(x), np.cumsum(widths[:-1]), axis=-1)
    return dict(zip(letters, streams, strict=True))


def attend(
    attention: Attention, x: jax.Array, site: Site, streams: Mapping[str, jax.Array], initial: ConvInit = NORMAL
) -> jax.Array:
    """The attention between its projections: (B, N, C)."""
    out = attention(x, site, *(streams[letter] for letter in attention.streams))
    projects = attention.streams and attention.projects_out
    return Dense(x.shape[-1], dtype=attention.dtype, initial=initial, name="proj")(out) if projects else out


class QKVAttention(nn.Module):
    """All tokens together, all streams in one projection: the form of DeiT.

    Attributes:
        num_heads: number of heads h, a divisor of C.
        attn_type: name of the attention, one of `flatten_jax.list_attentions()`.
        options: its further attributes, such as {"focusing_factor": 3}.
        dtype: of the computation; parameters are float32.
        conv_init: initial values of the attention's convolutions.
        linear_init: initial values of the projections.
    """

    num_heads: int
    attn_type: str = "focused"
    options: Mapping[str, Any] = nn.FrozenDict()
    dtype: jnp.dtype | None = None
    conv_init: ConvInit = TORCH_CONV
    linear_init: ConvInit = NORMAL

    @nn.compact
    def __call__(self, x: jax.Array, site: Site) -> jax.Array:
        attention = make_attention(self.attn_type, self.num_heads, self.dtype, self.options, self.conv_init)
        nn.share_scope(self, attention)
        attention.check(x, site)
        return attend(attention, x, site, self.projected(attention, x), self.linear_init)

    @nn.nowrap
    def projected(self, attention: Attention, x: jax.Array) -> dict[str, jax.Array]:
        """The attention's streams of x (B, N, C), by layers of this module."""
        return project(attention, attention.streams, x, self.linear_init)


class SplitAttention(QKVAttention):
    """QKVAttention with queries and keys in one projection, values in another, neither with a bias: the form of TNT."""

    @nn.nowrap
    def projected(self, attention: Attention, x: jax.Array) -> dict[str, jax.Array]:
        scores = "".join(letter for letter in attention.streams if letter in "qk")
        others = "".join(letter for letter in attention.streams if letter not in "qk")
        project_without = partial(project, attention, x=x, initial=self.linear_init, use_bias=False)
        return project_without(scores) | project_without(others)
