"""`rlframe schema`: what an editor needs to complete and check a recipe."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from rlframe.errors import SetupError
from rlframe.recipe.json_schema import recipe_schema
from rlframe.registry.discovery import Registry
from rlframe.text import say


def schema(
    output: Annotated[Path | None, typer.Option(help="Write it to this file.")] = None,
) -> None:
    """Print the JSON Schema of a recipe, for editors."""
    found, broken = recipe_schema(Registry())
    for message in broken:
        say(f"left open: {message}", err=True)
    text = json.dumps(found, indent=2, ensure_ascii=False)
    if output is None:
        say(text)
        return
    try:
        output.write_text(text + "\n", encoding="utf-8")
    except OSError as error:
        raise SetupError(f"{output} cannot be written: {error.strerror}") from error
    say(f"{output} is there; begin a recipe with: # yaml-language-server: $schema={output}")
