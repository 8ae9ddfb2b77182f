"""The composition root: the only reader of a recipe. Finished objects go from here to the engine."""

from rlframe.build.project import Project
from rlframe.build.run import Outcome, run_recipe

__all__ = ["Outcome", "Project", "run_recipe"]
