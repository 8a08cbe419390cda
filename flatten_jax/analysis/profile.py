"""Attention in numbers, block by block: how spread and how far, and of which rank."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from flatten_jax.analysis.capture import Layer
from flatten_jax.analysis.matrices import distance, entropy

TITLES = {
    "softmax": "softmax",
    "linear": "linear",
    "focused": "linear + focused map",
    "effective": "+ depthwise branch",
}


class BlockProfile(NamedTuple):
    """One block, the mean over the queries and the pictures that were captured.

    Attributes:
        block: its number.
        kind: "softmax" or "focused".
        entropy: (h,) in nats, of each head.
        uniform: log M, the most that an entropy can be.
        distance: (h,) in pixels, of each head, from a query to what it attends to.
    """

    block: int
    kind: str
    entropy: np.ndarray
    uniform: float
    distance: np.ndarray


def depth_profile(layers: Sequence[Layer], image_size: tuple[int, int], kind: str | None = None) -> list[BlockProfile]:
    """A profile of each block. Attention alone, without the depthwise branch; padding and class tokens as queries are
    left out.

    Args:
        layers: from `capture`.
        image_size: (height, width) in pixels.
        kind: as in `Layer.attention`.
    """
    profiles: list[BlockProfile] = []
    for layer in layers:
        pixels = np.array(image_size) / np.array(layer.grid)
        on_picture = ((layer.places >= 0) & (layer.places < layer.grid)).all(axis=-1)  # not NaN, a class token
        sums = np.zeros((2, layer.num_heads))
        for example in range(len(layer.q)):  # one after the other: a matrix of a large grid is large
            window = example % len(layer.places)
            seen = on_picture[window]
            matrix = layer.attention(kind, slice(example, example + 1))[0][:, seen]
            apart = distance(matrix, layer.places[window][seen] * pixels, layer.key_places[window] * pixels)
            sums += entropy(matrix).sum(axis=1), apart.sum(axis=1)
        means = sums / (on_picture.sum() * (len(layer.q) // len(layer.places)))
        profile = BlockProfile(layer.block, kind or layer.kind, means[0], float(np.log(layer.k.shape[1])), means[1])
        if profiles and profiles[-1].block == layer.block:  # the other stripes of a CSwin block
            before = profiles.pop()
            joined = [np.concatenate(pair) for pair in zip(before[2::2], profile[2::2], strict=True)]
            profile = profile._replace(
                entropy=joined[0], distance=joined[1], uniform=max(before.uniform, profile.uniform)
            )
        profiles.append(profile)
    return profiles


def query_map(layers: Sequence[Layer], query: tuple[int, int], kind: str, picture: int = 0) -> np.ndarray:
    """What one query takes from every place of the picture, the mean over heads.

    Args:
        layers: of one block: two for CSwin's stripes, else one.
        query: (row, column) on the grid of tokens.
        kind: as in `Layer.influence`.

    Returns:
        (height, width) of the grid; 0 outside the query's window.
    """
    maps = []
    for layer in layers:
        example, token = layer.locate(query, picture)
        maps.append(layer.on_picture(layer.influence(token, example, kind), example))
    return np.concatenate(maps).mean(axis=0)


def query_maps(
    layers: Sequence[Layer], queries: Sequence[tuple[int, int]], picture: int = 0
) -> Mapping[str, list[np.ndarray]]:
    """title -> a map for each query: the queries and keys of one block put through every attention in turn.

    One trained model, so the attentions other than its own are not what they would be in a model trained with them. The
    depthwise branch comes with the layer's own attention, where it has one.
    """
    kinds = ["softmax", "linear", "focused"] + (["effective"] if layers[0].has_branch else [])
    titles = {**TITLES, "effective": branch_title(layers[0])}
    return {titles[kind]: [query_map(layers, query, kind, picture) for query in queries] for kind in kinds}


def branch_title(layer: Layer) -> str:
    """What a layer's own attention with its depthwise branch is called; softmax has none but CSwin's LePE."""
    return TITLES["effective"] if layer.kind == "focused" else "softmax + LePE"


def of_block(layers: Sequence[Layer], block: int) -> list[Layer]:
    """The layers of one block, negative numbers counting from the end."""
    count = layers[-1].block + 1
    if not -count <= block < count:
        raise ValueError(f"{block=} must be within the {count} blocks of the model, from 0, or from -1 backwards")
    return [layer for layer in layers if layer.block == block % count]
