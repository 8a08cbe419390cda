"""Small attentions for these tests, one for each thing that a row of weights can be."""

from typing import ClassVar

import flax.linen as nn
import jax.numpy as jnp

from flatten_jax.attention import ATTENTIONS, Attention, Sized


class Bare(Attention):
    """Gives v, and v is a layer of its own in the original; so are the others."""

    original: ClassVar = {"q": "to_q", "k": "key.proj", "v": "to_v", "proj": "to_out_0"}

    def __call__(self, x, site, q, k, v):
        return q + k.mean(axis=1, keepdims=True) + v.mean(axis=1, keepdims=True)


class Gated(Attention):
    """A fourth stream, as RALA has it, and a layer of its own."""

    streams: ClassVar[str] = "qkvo"
    pointwise: ClassVar = ("qkvo", "proj", "mix")

    @nn.compact
    def __call__(self, x, site, q, k, v, o):
        v = nn.Dense(v.shape[2], name="mix")(v.mean(axis=1, keepdims=True))
        return (q + k.mean(axis=1, keepdims=True) + v) * o


class Counting(Attention):
    """Running statistics, and a constant that is drawn at first and never trained."""

    @nn.compact
    def __call__(self, x, site, q, k, v):
        v = nn.BatchNorm(use_running_average=True, name="bn")(v)
        projection = self.variable("constants", "projection", jnp.ones, (3, 2))
        order = self.variable("constants", "order", lambda: jnp.arange(4))
        return q + k.mean(axis=1, keepdims=True) + v.mean(axis=1, keepdims=True) * projection.value[order.value[0], 0]


class Tied(Attention):
    """A parameter for each way of belonging to a number of tokens."""

    sized: ClassVar = {
        "tokens": Sized(axis=2, of="queries"),
        "keys": Sized(axis=1),
        "rows": Sized(axis=1, along="rows", of="queries"),
        "columns": Sized(axis=0, along="columns", of="queries"),
        "sums": Sized(axis=0, summed=True),
        "mixed/kernel": Sized(axis=0, summed=True),
    }

    slots: int = 3
    fixed: bool = False

    @nn.compact
    def __call__(self, x, site, q, k, v):
        (height, width), tokens = site.grid, k.shape[1]
        one = nn.initializers.ones
        own = self.param("tokens", one, (1, self.slots, q.shape[1])).mean()
        own += self.param("keys", one, (1, tokens, 2)).mean() + self.param("rows", one, (1, height, 1)).mean()
        own += self.param("columns", one, (width, 2)).mean() + self.param("sums", one, (tokens, 2)).mean()
        own += nn.Dense(2, name="mixed")(k.swapaxes(1, 2)).mean()
        return q + v.mean(axis=1, keepdims=True) + own


class Fixed(Attention):
    """A parameter that belongs to one grid."""

    sized: ClassVar = {"table": Sized(axis=0, along="fixed", of="queries")}

    @nn.compact
    def __call__(self, x, site, q, k, v):
        return q + k.mean(axis=1, keepdims=True) + v * self.param("table", nn.initializers.ones, (q.shape[1], 1))


TOYS = {"bare": Bare, "gated": Gated, "counting": Counting, "tied": Tied, "fixed": Fixed}


def register(monkeypatch):
    """The toys among the attentions, for one test."""
    for name, cls in TOYS.items():
        monkeypatch.setitem(ATTENTIONS, f"toy_{name}", cls)
