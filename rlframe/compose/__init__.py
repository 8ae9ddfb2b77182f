"""The composition root: the only reader of a recipe. Finished objects go from here to the engine."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rlframe.compose.project import Project
    from rlframe.compose.run import Outcome, run_recipe

__all__ = ["Outcome", "Project", "run_recipe"]


def __getattr__(name: str) -> Any:
    """Import a name when it is asked for: `rlframe validate` uses the parts that need no torch."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = import_module(f"{__name__}.{'project' if name == 'Project' else 'run'}")
    return getattr(home, name)
