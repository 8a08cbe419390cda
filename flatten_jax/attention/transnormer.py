"""TransNormer's attentions (Qin et al., EMNLP 2022, arXiv 2210.10340): a norm of the result instead of a normaliser."""

from collections.abc import Callable, Mapping
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from flatten_jax.attention.contract import Attention, Origin, Site, heads
from flatten_jax.attention.core import elu1, unnormalised, wide
from flatten_jax.ops.norm import LayerNorm

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "identity": lambda x: x,
    "relu": jax.nn.relu,
    "elu": jax.nn.elu,
    "1+elu": elu1,
    "2+elu": lambda x: 1 + elu1(x),
    "silu": jax.nn.silu,
}
NORMS = ("simplermsnorm", "rmsnorm", "gatedrmsnorm", "scalenorm", "layernorm")
PROJECTIONS = {"q": "q_proj", "k": "k_proj", "v": "v_proj", "proj": "out_proj"}


def simple_rms_norm(x: jax.Array, epsilon: float = 1e-8) -> jax.Array:
    """x / (sqrt(mean x^2) + epsilon) over the last axis, in float32 at least; the derivative of the root at 0 is 0."""
    x = wide(x)
    squares = jnp.square(x).mean(axis=-1, keepdims=True)
    positive = squares > 0
    return x / (jnp.where(positive, jnp.sqrt(jnp.where(positive, squares, 1)), 0) + epsilon)


def block_attention(q: jax.Array, k: jax.Array, v: jax.Array, chunk_size: int, activation: Callable) -> jax.Array:
    """activation(q k^T / sqrt(d)) v per head inside blocks of `chunk_size` tokens of the flat sequence.

    Zeros fill the last block, and take part as keys where the activation does not make 0 of 0.

    Args:
        q, k, v: (B, N, h, d).
        activation: of scores (..., N, M), such as relu, or softmax over the last axis.

    Returns:
        (B, N, h, d) in float32 at least.
    """
    tokens, dtype = q.shape[1], jnp.promote_types(v.dtype, jnp.float32)
    padding = ((0, 0), (0, -tokens % chunk_size), (0, 0), (0, 0))
    q, k, v = (
        jnp.pad(x, padding).reshape(x.shape[0], -1, chunk_size, *x.shape[2:])
        for x in (wide(q) * q.shape[-1] ** -0.5, wide(k), v)
    )
    weights = activation(jnp.einsum("bcnhd,bcmhd->bchnm", q, k))
    out = jnp.einsum("bchnm,bcmhd->bcnhd", weights, v.astype(dtype))
    return out.reshape(out.shape[0], -1, *out.shape[3:])[:, :tokens]


class _Normed(Attention):
    """What the three have in common: their options, and the norm over all channels.

    Attributes:
        act_fun: phi, "identity", "relu", "elu", "1+elu", "2+elu" or "silu".
        norm_type: "simplermsnorm" x / (r + 1e-8) with r = sqrt(mean x^2); "rmsnorm" with a `scale` besides;
            "gatedrmsnorm" with scale sigmoid(gate x); "scalenorm" x / sqrt(mean x^2 + 1e-5) with one number `scala`;
            "layernorm".
    """

    act_fun: str = "1+elu"
    norm_type: str = "simplermsnorm"

    def activation(self, option: str = "act_fun") -> Callable[[jax.Array], jax.Array]:
        name = getattr(self, option)
        if name not in ACTIVATIONS:
            raise ValueError(f"{option}={name!r} must be one of {', '.join(ACTIVATIONS)}")
        return ACTIVATIONS[name]

    def normed(self, x: jax.Array, divisor: int = 1) -> jax.Array:
        """The norm of `divisor` times x (B, N, h, d), heads merged: x is left, and epsilons are divided instead."""
        x = wide(x).reshape(*x.shape[:2], -1)
        if self.norm_type == "layernorm":
            return LayerNorm(epsilon=1e-5 / divisor**2, name="norm_layer")(x)
        if self.norm_type == "scalenorm":
            scala = self.param("norm_scala", nn.initializers.ones, (1,))
            return x * jax.lax.rsqrt(jnp.square(x).mean(axis=-1, keepdims=True) + 1e-5 / divisor**2) * scala
        if self.norm_type not in NORMS:
            raise ValueError(f"norm_type={self.norm_type!r} must be one of {', '.join(NORMS)}")
        y = simple_rms_norm(x, 1e-8 / divisor)
        if self.norm_type != "simplermsnorm":
            y = y * self.param("norm_scale", nn.initializers.ones, (x.shape[2],))
        if self.norm_type == "gatedrmsnorm":
            y = y * jax.nn.sigmoid(self.param("norm_gate", nn.initializers.ones, (x.shape[2],)) * x * divisor)
        return y


def _norm_called(name: str) -> dict[str, str]:
    return {"norm_layer": name} | {f"norm_{leaf}": f"{name}.{leaf}" for leaf in ("scale", "gate", "scala")}


class TransNormer(_Normed):
    """NormAttention, version 1: norm(phi(q) (phi(k)^T v)) over all channels; no normaliser, no scale.

    The sums are means here, and the norms' epsilons divided by the number of keys to fit, which is equal.

    Attributes:
        act_fun: phi, "identity", "relu", "elu", "1+elu", "2+elu" or "silu".
        norm_type: "simplermsnorm", "rmsnorm", "gatedrmsnorm", "scalenorm" or "layernorm".
    """

    origin: ClassVar[Origin] = Origin(
        paper="Qin et al., EMNLP 2022",
        arxiv="2210.10340",
        code="OpenNLPLab/fairseq-evo@38fa81f",
        licence="MIT",
        formula="norm(phi(q) (phi(k)^T v))",
    )
    original: ClassVar[Mapping[str, str]] = {**PROJECTIONS, **_norm_called("layer_norm")}

    act_fun: str = "elu"

    @nn.compact
    def __call__(self, x: jax.Array, site: Site, q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        q, k, v_ = (heads(a, self.num_heads) for a in (*map(self.activation(), (wide(q), wide(k))), v))
        return self.normed(unnormalised(q, k, v_), k.shape[1]).astype(v.dtype)


class TransNormerV2(_Normed):
    """NormAttention, version 2: psi(u) * norm(phi(q) (phi(k)^T psi(v))), with u projected from x as q is.

    Attributes:
        act_fun: phi, "identity", "relu", "elu", "1+elu", "2+elu" or "silu".
        uv_act_fun: psi, one of the same. The code's default, "swish", is none of its own names and means "identity".
        norm_type: "simplermsnorm", "rmsnorm", "gatedrmsnorm", "scalenorm" or "layernorm".
    """

    origin: ClassVar[Origin] = Origin(
        paper="Qin et al., EMNLP 2022",
        arxiv="2210.10340",
        code="Doraemonzzz/transnormer-v2-pytorch@c28d36c",
        licence="none",
        formula="psi(u) * norm(phi(q) (phi(k)^T psi(v)))",
    )
    streams: ClassVar[str] = "qkvu"
    original: ClassVar[Mapping[str, str]] = {**PROJECTIONS, "u": "u_proj", **_norm_called("norm")}

    uv_act_fun: str = "silu"

    @nn.compact
    def __call__(self, x: jax.Array, site: Site, q: jax.Array, k: jax.Array, v: jax.Array, u: jax.Array) -> jax.Array:
        phi, psi = self.activation(), self.activation("uv_act_fun")
        values = psi(wide(v)).astype(v.dtype)
        q, k, values = (heads(a, self.num_heads) for a in (phi(wide(q)), phi(wide(k)), values))
        return (psi(wide(u)) * self.normed(unnormalised(q, k, values), k.shape[1])).astype(v.dtype)


class TransNormerDiag(_Normed):
    """DiagAttention, version 1: norm(phi(q k^T / sqrt(d)) v) inside blocks of the flat sequence.

    On a grid the blocks are stripes of rows. A class token is the first of the first block. Query and key blocks
    belong to each other, so keys cannot be fewer.

    Attributes:
        chunk_size: tokens of a block, 32 or 64 in the paper.
        use_softmax: softmax instead of phi, and no norm. The zeros that fill the last block then take part as keys.
        act_fun: phi, "identity", "relu", "elu", "1+elu", "2+elu" or "silu".
        norm_type: "simplermsnorm", "rmsnorm", "gatedrmsnorm", "scalenorm" or "layernorm".
    """

    origin: ClassVar[Origin] = Origin(
        paper="Qin et al., EMNLP 2022",
        arxiv="2210.10340",
        code="OpenNLPLab/fairseq-evo@38fa81f",
        licence="MIT",
        formula="norm(relu(q k^T / sqrt(d)) v) in blocks of tokens",
    )
    takes_reduced: ClassVar[bool] = False
    original: ClassVar[Mapping[str, str]] = {**PROJECTIONS, **_norm_called("norm")}

    act_fun: str = "relu"
    chunk_size: int = 32
    use_softmax: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, site: Site, q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        if self.chunk_size < 1:
            raise ValueError(f"chunk_size={self.chunk_size} must be at least 1 token")
        activation = jax.nn.softmax if self.use_softmax else self.activation()
        out = block_attention(*(heads(a, self.num_heads) for a in (q, k, v)), self.chunk_size, activation)
        return (out.reshape(v.shape) if self.use_softmax else self.normed(out)).astype(v.dtype)
