"""What every section of a recipe is built on."""

from __future__ import annotations

from typing import Annotated

from pydantic import ConfigDict, Field

from rlframe.api.component import Section

Share = Annotated[float, Field(ge=0, lt=1)]
Count = Annotated[int, Field(ge=1, le=1_000_000)]
"""Of things that are held in memory, each for itself."""


class RecipeSection(Section):
    """Built as a part of `Recipe`, when the first one is validated; `--help` never needs it."""

    model_config = ConfigDict(defer_build=True)
