"""Attention in numbers, block by block: how spread and how far; and what single queries take from the picture."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from flatten_jax.analysis.layer import Layer
from flatten_jax.analysis.matrices import distance, entropy, mean

# What queries and keys are put through beside their own attention: both have no parameters.
REFERENCES = ("softmax", "linear")


class BlockProfile(NamedTuple):
    """One block, the mean over the queries and the pictures that were captured, but queries without any weight.

    Attributes:
        block: its number.
        kind: the name of its attention.
        entropy: (h,) in nats, of each head.
        uniform: log M, the most that an entropy can be.
        distance: (h,) in pixels, of each head, from a query to what it attends to.
    """

    block: int
    kind: str
    entropy: np.ndarray
    uniform: float
    distance: np.ndarray


def depth_profile(layers: Sequence[Layer], image_size: tuple[int, int], queries: int = 64) -> list[BlockProfile]:
    """A profile of each block: of attention alone, without local branches that can be left out.

    Padding and class tokens as queries are left out.

    Args:
        layers: from `capture`.
        image_size: (height, width) in pixels.
        queries: how many of a window are asked at most, evenly spread over its tokens.
    """
    profiles: list[BlockProfile] = []
    for layer in layers:
        pixels, (grid, places, key_places, _) = np.array(image_size) / np.array(layer.places.grid), layer.places
        tokens = np.unique(np.linspace(0, places.shape[1] - 1, min(queries, places.shape[1])).round().astype(int))
        places = places[:, tokens]
        on_picture = ((places >= 0) & (places < grid)).all(axis=-1)  # not NaN, a class token
        apart = places[:, None] * pixels, key_places[:, None] * pixels
        measured = []
        for start in range(0, len(layer.output), len(places)):  # the windows of a picture
            matrix = layer.attention(slice(start, start + len(places)), tokens)
            each = np.stack([entropy(matrix), distance(matrix, *apart)], axis=-1)  # (P, h, R, 2)
            measured.append(mean(each.swapaxes(1, 2)[on_picture], axis=0))
        means, uniform = mean(np.array(measured), axis=0), float(np.log(key_places.shape[1]))
        profile = BlockProfile(layer.block, layer.kind, means[:, 0], uniform, means[:, 1])
        if profiles and profiles[-1].block == layer.block:  # the other stripes of a CSwin block
            before = profiles.pop()
            joined = [np.concatenate(pair) for pair in zip(before[2::2], profile[2::2], strict=True)]
            profile = profile._replace(
                entropy=joined[0], distance=joined[1], uniform=max(before.uniform, profile.uniform)
            )
        profiles.append(profile)
    return profiles


def query_map(layers: Sequence[Layer], query: tuple[int, int], picture: int = 0) -> np.ndarray:
    """What one query takes from every place of the picture, the mean over heads.

    Args:
        layers: of one block: two for CSwin's stripes, else one.
        query: (row, column) on the grid of tokens.

    Returns:
        (height, width) of the grid; 0 outside the query's window.
    """
    maps = []
    for layer in layers:
        example, token = layer.locate(query, picture)
        maps.append(layer.places.on_picture(layer.influence(token, example), example))
    return np.concatenate(maps).mean(axis=0)


def query_maps(
    layers: Sequence[Layer], queries: Sequence[tuple[int, int]], picture: int = 0
) -> Mapping[str, list[np.ndarray]]:
    """title -> a map for each query: the `variants` of one block's attention in turn."""
    columns = [variants(layer) for layer in layers]
    return {
        title: [query_map([column[title] for column in columns], query, picture) for query in queries]
        for title in columns[0]
    }


def variants(layer: Layer) -> dict[str, Layer]:
    """title -> the queries, keys and values of a layer through one attention after the other: the `REFERENCES`, then
    its own without and with its local branch. For an attention that makes its values itself only its own.

    One trained model, so the other attentions are not what they would be in a model trained with them.
    """
    found = {name: layer.through(name) for name in REFERENCES if name != layer.kind}
    found[layer.kind] = layer.without_branch()
    if layer.has_branch:
        found[f"{layer.kind} + local branch"] = layer
    return {_title(name, variant): variant for name, variant in found.items() if variant is not None}


def _title(name: str, layer: Layer) -> str:
    return name if layer.shows == "matrix" else f"{name}, {layer.shows}"


def of_block(layers: Sequence[Layer], block: int) -> list[Layer]:
    """The layers of one block, negative numbers counting from the end."""
    count = layers[-1].block + 1
    if not -count <= block < count:
        raise ValueError(f"{block=} must be within the {count} blocks of the model, from 0, or from -1 backwards")
    return [layer for layer in layers if layer.block == block % count]
