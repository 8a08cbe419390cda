"""What a trained model's attention looks like: rank, entropy, distance and focus of every block."""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from flatten_jax.analysis.capture import capture
from flatten_jax.analysis.matrices import focus, mean, numerical_rank
from flatten_jax.analysis.profile import depth_profile

PICTURES = 4
LARGEST = 256  # keys of attentions without a matrix, whose rows are had channel by channel


def inside(model: nn.Module, variables: Mapping[str, Any], images: jax.Array) -> list[dict[str, Any]]:
    """A row for each block, means over its heads, over queries and over pictures; local branches are left out.

    Args:
        images: (B, height, width, 3), normalised; the first `PICTURES` are looked at.

    Returns:
        block, kind (the attention), keys (M); rank, as `numerical_rank` of a head's matrix; entropy in nats, and
        uniform, log M; distance in pixels; focus, the largest share of a row as a multiple of the mean. Of attentions
        without a matrix (`Layer.shows` "influence") all are of the influence of tokens on each other, where there are
        at most `LARGEST`; else the row has `said` alone, as that of a block that takes nothing from other tokens.
    """
    rows = []
    for layer in capture(model, variables, images[:PICTURES]):
        row: dict[str, Any] = {"block": layer.block, "kind": layer.kind}
        tokens = layer.output.shape[1]
        if "v" not in layer.streams and tokens > LARGEST:
            rows.append(row | {"said": f"{layer.kind} has no matrix, and {tokens} tokens are too many to ask for it"})
            continue
        every = np.arange(tokens)  # as `depth_profile` asks for up to 64: the same compiled program
        matrices = [layer.attention(slice(i, i + 1), every) for i in range(len(layer.output))]
        if not np.any(matrices):
            rows.append(row | {"said": f"{layer.kind} takes nothing from other tokens there"})
            continue
        (profile,) = depth_profile([layer], model.image_size)
        row["keys"] = matrices[0].shape[-1]
        row["rank"] = float(np.mean([numerical_rank(matrix) for matrix in matrices]))
        row["focus"] = float(mean(np.array([focus(matrix) for matrix in matrices])))
        row |= {"entropy": float(mean(profile.entropy)), "uniform": profile.uniform}
        rows.append(row | {"distance": float(mean(profile.distance))})
    return rows
