"""What a model is made of: how many parameters, and a table of its levels."""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax

from flatten_jax.models.backbone import Backbone
from flatten_jax.models.create import abstract_variables
from flatten_jax.models.images import dummy_images


def num_params(model: nn.Module | Mapping[str, Any]) -> int:
    """How many parameters a model has; statistics and constants are none.

    Args:
        model: from `create_model`, nothing of it is computed; or its variables, {"params": ...}, or the parameters.
    """
    variables = model if isinstance(model, Mapping) else abstract_variables(model)
    return sum(leaf.size for leaf in jax.tree.leaves(variables.get("params", variables)))


def summary(model: Backbone) -> str:
    """A table of a model's levels, for people: module, shape of the map, parameters. It is traced, not computed.

        print(flatten_jax.summary(flatten_jax.create_model("swin_t")))

    A level is what `features_only` gives a map of, by the name that the map has in `feature_info`. Its parameters are
    those up to the map and after the level before: patch embeddings go with the blocks behind them. The last lines are
    the other parameters, such as the norm and the classifier, and all of them.
    """
    own, seen, rows = _params(abstract_variables(model)), set(), [("level", "map", "parameters")]
    for info in model.feature_info:
        part = model.clone(features_only=True, out_indices=(info["index"],), feature_norm=False)
        maps, variables = jax.eval_shape(lambda part=part: part.init_with_output(jax.random.key(0), dummy_images(part)))
        new = _params(variables).keys() - seen
        seen |= new
        rows.append((info["module"], " x ".join(map(str, maps[0].shape[1:])), f"{sum(own[path] for path in new):,}"))
    rest = sorted(own.keys() - seen)
    if rest:
        names = ", ".join(dict.fromkeys(path[0] for path in rest))
        shape = "" if model.features_only else str(model.num_classes or "")
        rows.append((names, shape, f"{sum(own[path] for path in rest):,}"))
    rows.append(("all", "", f"{sum(own.values()):,}"))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(f"{a:{widths[0]}}  {b:>{widths[1]}}  {c:>{widths[2]}}" for a, b, c in rows)


def _params(variables: Mapping[str, Any]) -> dict[tuple[str, ...], int]:
    """Path -> size of every parameter."""
    leaves = jax.tree_util.tree_leaves_with_path(variables["params"])
    return {tuple(key.key for key in path): leaf.size for path, leaf in leaves}
