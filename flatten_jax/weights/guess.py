"""Which model a PyTorch state dict belongs to, from its names and shapes."""

import json
import math
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from flatten_jax.models import create_model, list_models, model_options
from flatten_jax.weights.layout import entries, is_buffer, layout
from flatten_jax.weights.match import Shape

_OF_IMAGE_SIZE = re.compile(r"(.*\.)?(positional_encoding|(absolute_)?pos_embed\d*)$")


def guess_model(state_dict: Mapping[str, np.ndarray]) -> tuple[str, dict[str, Any]]:
    """The name, and the options of `create_model`, of the model that has exactly these names and shapes.

    Where several do, the one that needs the fewest options. Options are found among num_classes, image_size, attn_type,
    window_size and kernel_size. What leaves no trace in a shape, such as the focusing factor, stays at its default.

    Raises:
        ValueError: no model has; it names the nearest one and what differs.
    """
    given = {name: tuple(array.shape) for name, array in state_dict.items() if not is_buffer(name)}
    stages = _stages(given)
    if not stages:
        raise ValueError("these are no weights of a vision transformer of this library: no block is among the names")
    depths, widths = [len(blocks) for blocks in stages], [blocks[0][1] for blocks in stages]
    names = [name for name in list_models() if _settings(name) == (depths, widths)]
    tried = [_try(name, given, stages) for name in names or _nearest(depths, widths)]
    if all(differs for differs, _, _ in tried):
        tried += [t for _, options, name in list(tried) for t in _try_sizes(name, given, options)]
    differs, options, name = min(tried, key=lambda t: (len(t[0]), len(t[1]), t[2]))
    if differs:
        differs = list(dict.fromkeys(differs))
        more = f", and {len(differs) - 6} more" if len(differs) > 6 else ""
        raise ValueError(
            f"no model has these shapes; the nearest is {name}{_text(options)}: {'; '.join(differs[:6])}{more}"
        )
    return name, options


def _stages(given: Mapping[str, Shape]) -> list[list[tuple[str, int]]]:
    """Per stage, per block: the letter of its attention and its width."""
    stages: dict[str, dict[int, tuple[str, int]]] = {}
    linear = {name.rpartition(".attn")[0] for name in given if name.endswith((".positional_encoding", ".dwc.weight"))}
    for name, shape in given.items():
        if found := re.fullmatch(r"(.*?)(\d+)\.norm1\.weight", name):
            block = name.removesuffix(".norm1.weight")
            stages.setdefault(found[1], {})[int(found[2])] = ("L" if block in linear else "S", shape[0])
    return [[blocks[i] for i in sorted(blocks)] for _, blocks in sorted(stages.items())]


def _settings(name: str) -> tuple[list[int], list[int]]:
    options = model_options(name)
    depths = list(options.get("depths") or [options["depth"]])
    return depths, list(options.get("embed_dims") or [options["embed_dim"] * 2**i for i in range(len(depths))])


def _nearest(depths: list[int], widths: list[int]) -> list[str]:
    """Models of the same number of stages that are closest in depth and width."""

    def distance(name: str) -> float:
        theirs = _settings(name)
        if len(theirs[0]) != len(depths):
            return math.inf
        pairs = zip((*theirs[0], *theirs[1]), (*depths, *widths), strict=True)
        return sum(abs(math.log(ours / max(1, n))) for ours, n in pairs)

    return sorted(list_models(), key=distance)[:2]


_Tried = tuple[list[str], dict[str, Any], str]  # what differs, options, name


def _try(name: str, given: Mapping[str, Shape], stages: list[list[tuple[str, int]]]) -> _Tried:
    """One model, with the options that the names and the shapes of head and convolution tell."""
    defaults = model_options(name)
    options: dict[str, Any] = {"num_classes": given["head.bias"][0] if "head.bias" in given else 0}
    options["attn_type"] = _pattern(stages)
    dwc = next((shape for key, shape in given.items() if key.endswith(".dwc.weight")), None)
    if dwc:
        options["kernel_size"] = dwc[-1]
    options = {k: v for k, v in options.items() if v != defaults.get(k)}
    return _differences(name, given, options), options, name


def _try_sizes(name: str, given: Mapping[str, Shape], options: Mapping[str, Any]) -> list[_Tried]:
    """The same model with what would explain the first position encoding: another image size, or (Swin) window."""
    tokens = next((shape[1] for key, shape in given.items() if _OF_IMAGE_SIZE.match(key) and len(shape) == 3), 0)
    side, defaults = math.isqrt(max(0, tokens - ("cls_token" in given))), model_options(name)
    size = side * defaults.get("patch_size", 4)
    changes = [{"image_size": (size, size)}, {"window_size": side}] if side else []
    changed = [{**options, **change} for change in changes if change.keys() <= defaults.keys()]
    return [(_differences(name, given, options), options, name) for options in changed]


def _differences(name: str, given: Mapping[str, Shape], options: Mapping[str, Any]) -> list[str]:
    try:
        wanted = entries(layout(create_model(name, **options)))
    except ValueError as error:  # a pattern or size that this family does not have
        return [str(error)] * len(given)
    differs = [f"{key} is missing" for key in wanted if key not in given]
    differs += [f"{key} is unexpected" for key in given if key not in wanted]
    differs += [
        f"{key} is {given[key]} instead of {shape}"
        for key, shape in wanted.items()
        if key in given and given[key] != shape
    ]
    return differs


def _pattern(stages: list[list[tuple[str, int]]]) -> str:
    """`attn_type`: "LLSS"; a mixed stage, linear blocks first, as in "LLMS4"; one letter for DeiT, or one per block."""
    letters = ["".join(letter for letter, _ in blocks) for blocks in stages]
    if len(stages) == 1:
        return letters[0][0] if len(set(letters[0])) == 1 else letters[0]
    counts = [str(blocks.count("L")) for blocks in letters if len(set(blocks)) > 1]
    return "".join(blocks[0] if len(set(blocks)) == 1 else "M" for blocks in letters) + "".join(counts[:1])


def _text(options: Mapping[str, Any]) -> str:
    return f" with {', '.join(f'{k}={json.dumps(v)}' for k, v in options.items())}" if options else ""
