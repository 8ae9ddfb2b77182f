"""The recipe: what a run is, as one validated value. Importing this package imports no torch."""

from rlframe.recipe.load import Chosen, LoadedRecipe, load_recipe
from rlframe.recipe.schema import Recipe

__all__ = ["Chosen", "LoadedRecipe", "Recipe", "load_recipe"]
