"""Every model of `configs/recipes` on ImageNet-1k, by its published recipe.

    python main.py --config configs/published.py:flatten_swin_b --workdir runs/flatten_swin_b

For a TPU v4-8 or a box of GPUs, with --config.model.dtype=bfloat16.
A minute on any CPU, with generated pictures: --config configs/published.py:flatten_swin_b,smoke
Models of 384 px are fine-tuned from those of 224 px: --config.init_from=runs/flatten_swin_b
What a paper's recipe has and ours lacks (`Recipe.missing`) is said when the config is made.
Top-1: `flatten-jax models` prints the published ones; not run here.
"""

import difflib
import sys

from configs import base
from configs.recipes import RECIPES


def get_config(arg: str = ""):
    name, _, variant = arg.partition(",")
    return published(name, variant)


def published(name: str, variant: str = ""):
    """The config of a model, or its variant "smoke"."""
    if name not in RECIPES:
        close = difflib.get_close_matches(name, RECIPES, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"choose from {', '.join(RECIPES)}"
        raise ValueError(f"configs/published.py:{name} names no model with a published recipe; {hint}")
    recipe = RECIPES[name]
    if recipe.missing and not variant:
        print(f"note: the published recipe of {name} has what this one lacks: {recipe.missing}", file=sys.stderr)
    return base.variant(base.imagenet(name, recipe), variant)
