"""What a student is taught by a teacher, as functions of arrays; all in float32 at least, each a mean over examples."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import optax

from flatten_jax.attention.core import wide

MAP_ERROR = 1000.0  # weight of the outputs' squared error beside the cross-entropy of maps (LoLCATs)
LEAST = 1e-12  # of a student's attention weight, below which its logarithm is not taken


def answer_loss(
    logits: jax.Array, taught: jax.Array, kind: str, tau: float = 1.0, reduction: str = "sample"
) -> jax.Array:
    """How far a student's answer is from its teacher's (DeiT, Touvron et al., 2021, arXiv 2012.12877, section 4).

    Args:
        logits, taught: of student and teacher, (B, classes).
        kind: "hard", cross-entropy with the class that the teacher finds most likely; "soft", tau^2 times the
            Kullback-Leibler divergence of the two softmaxes at temperature tau.
        tau: of "soft".
        reduction: of "soft": "sample", the sum over classes, a mean over examples; "deit", the mean over both, as
            DeiT's code has it, which is smaller by the number of classes.

    Returns:
        ().
    """
    logits, taught = wide(logits), wide(taught)
    if kind == "hard":
        return optax.softmax_cross_entropy_with_integer_labels(logits, taught.argmax(axis=-1)).mean()
    ours, theirs = (jax.nn.log_softmax(x / tau, axis=-1) for x in (logits, taught))
    apart = (jnp.exp(theirs) * (theirs - ours)).sum() * tau**2
    return apart / (logits.size if reduction == "deit" else len(logits))


def squared_error(ours: Sequence[jax.Array], theirs: Sequence[jax.Array]) -> jax.Array:
    """The mean over blocks of the mean squared error of what their attentions gave, each (B, N, C): ()."""
    errors = [((wide(a) - wide(b)) ** 2).mean() for a, b in zip(ours, theirs, strict=True)]
    return sum(errors) / len(errors)


def map_loss(ours: jax.Array, theirs: jax.Array, values: jax.Array) -> jax.Array:
    """LoLCATs' loss of a feature map (Zhang et al., 2024, arXiv 2410.10254): of the maps, and of what they do.

    Args:
        ours, theirs: attention weights of student and teacher, (B, h, N, M), whose rows have sum 1.
        values: (B, M, h, d), the same for both.

    Returns:
        1000 times the mean squared error of the two products with the values, plus `map_cross_entropy`: ().
    """
    moved = [jnp.einsum("bhnm,bmhd->bnhd", weights, wide(values)) for weights in (ours, theirs)]
    return MAP_ERROR * squared_error(moved[:1], moved[1:]) + map_cross_entropy(ours, theirs)


def map_cross_entropy(ours: jax.Array, theirs: jax.Array) -> jax.Array:
    """The mean over rows of - sum theirs log ours, both (B, h, N, M): ()."""
    return -(theirs * jnp.log(jnp.maximum(ours, LEAST))).sum(axis=-1).mean()


def feature_loss(ours: jax.Array, theirs: jax.Array, kind: str = "mse") -> jax.Array:
    """How far the features before pooling are apart.

    Args:
        ours, theirs: (B, ..., C).
        kind: "mse", the mean squared error (ViT-AdaLA, arXiv 2603.16063); "cosine", 1 minus the cosine of each token
            plus the smooth L1 distance (IronViT).

    Returns:
        ().
    """
    ours, theirs = wide(ours), wide(theirs)
    if kind == "mse":
        return squared_error([ours], [theirs])
    norms = [jnp.sqrt((x * x).sum(axis=-1) + LEAST) for x in (ours, theirs)]
    cosine = (ours * theirs).sum(axis=-1) / (norms[0] * norms[1])
    return (1 - cosine).mean() + optax.huber_loss(ours, theirs).mean()
