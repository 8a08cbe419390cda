"""Pictures through a model and into a figure: what `flatten-jax visualize` draws."""

from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import numpy as np
from matplotlib.figure import Figure

from flatten_jax.analysis import figures
from flatten_jax.analysis.capture import capture
from flatten_jax.analysis.layer import Layer
from flatten_jax.analysis.matrices import numerical_rank, singular_values
from flatten_jax.analysis.profile import depth_profile, of_block, query_maps, variants
from flatten_jax.models.images import IMAGENET_MEAN, IMAGENET_STD, normalize

FIGURES = ("attention", "spectra", "depth")
CENTRE = (0.5, 0.5)


def visualize(
    model: nn.Module,
    variables: Mapping[str, Any],
    pictures: Sequence[np.ndarray],
    figure: str = "attention",
    *,
    block: int = -1,
    head: int = 0,
    queries: Sequence[tuple[float, float]] = (CENTRE,),
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
) -> Figure:
    """A figure of what a model attends to in pictures.

    Args:
        model, variables: of `create_model`.
        pictures: (height, width, 3) uint8 of the model's size.
        figure: "attention": what each query of each picture attends to, in one block: its queries and keys through
            softmax, through linear attention, and through its own attention, without and with a local branch.
            "spectra": the singular values of the same matrices for one head of the block, in the window of the first
            query of the first picture; not for attentions that make their values themselves.
            "depth": entropy and distance of the attention of all blocks, the mean over the pictures.
        block: number of the block, from 0, or from -1 backwards.
        head: of "spectra", as `block`.
        queries: (down, right) as shares of the picture's height and width, 0 to 1.
        mean, std: of the channels, by which pictures are normalised.
    """
    if figure not in FIGURES:
        raise ValueError(f"{figure=} is none of {', '.join(FIGURES)}")
    if not pictures or not queries:
        raise ValueError(
            f"{len(pictures)} pictures and {len(queries)} queries were given: at least one of each is needed"
        )
    for query in queries:
        if len(query) != 2 or not all(0 <= share <= 1 for share in query):
            raise ValueError(f"{query=} must be two shares of the picture's height and width, 0 to 1, such as 0.5,0.25")
    layers = capture(model, variables, normalize(np.stack(pictures), mean, std))
    if figure == "depth":
        profile = depth_profile(layers, model.image_size)
        return figures.by_depth({"mean over the heads": profile})
    layers = of_block(layers, block)
    places = [tuple(min(int(s * n), n - 1) for s, n in zip(q, layers[0].places.grid, strict=True)) for q in queries]
    if figure == "spectra":
        return _spectra(layers, head, places[0])
    maps: dict[str, list[np.ndarray]] = {}
    for picture in range(len(pictures)):
        for title, drawn in query_maps(layers, places, picture).items():
            maps.setdefault(title, []).extend(drawn)
    title = f"block {layers[0].block}: its queries and keys through one attention after the other"
    return figures.attention_maps([p for p in pictures for _ in places], places * len(pictures), maps, title)


def _spectra(layers: Sequence[Layer], head: int, query: tuple[int, int]) -> Figure:
    heads = [(layer, i) for layer in layers for i in range(layer.num_heads)]
    if not -len(heads) <= head < len(heads):
        raise ValueError(f"{head=} must be within the {len(heads)} heads of block {layers[0].block}")
    layer, i = heads[head]
    example, _ = layer.locate(query)
    shown = {title: variant.effective(example, i, channel=0) for title, variant in variants(layer).items()}
    values = {title: singular_values(matrix) for title, matrix in shown.items()}
    ranks = {title: int(numerical_rank(matrix)) for title, matrix in shown.items()}
    width = layer.output.shape[2] // layer.num_heads
    return figures.spectra(values, ranks, width, f"block {layer.block}, head {head}")
