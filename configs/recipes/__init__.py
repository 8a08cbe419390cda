"""The published recipes: model -> how it was trained. `configs/published.py` makes configs of them."""

from configs.recipes.compared import COMPARED
from configs.recipes.hosts import HOSTS
from configs.recipes.linear import LINEAR
from configs.recipes.recipe import Recipe

__all__ = ["RECIPES", "Recipe"]

RECIPES: dict[str, Recipe] = {**HOSTS, **LINEAR, **COMPARED}
