"""`rlframe train RECIPE [key=value ...]`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from rlframe.cli.options import AllowLocalCode, NoPlugin, installed
from rlframe.recipe import load_recipe


def train(
    recipe: Annotated[Path, typer.Argument(help="A YAML recipe.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="Changes to it, as in ppo.updates=10.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option(help="Run directory; runs/<recipe>-<time> if left out.")
    ] = None,
    no_plugin: NoPlugin = None,
    allow_local_code: AllowLocalCode = False,
) -> None:
    """Run every stage of a recipe: supervised fine-tuning, reward model, PPO."""
    registry = installed(no_plugin, allow_local_code=allow_local_code)
    loaded = load_recipe(recipe, overrides or [], registry=registry)
    # On a CPU, torch takes large tensors from huge pages: a tenth less time. Read when it is imported.
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    # The recipe is checked first: a typo answers at once, and torch is imported only now.
    from transformers.utils.logging import disable_progress_bar

    from rlframe.build import run_recipe
    from rlframe.runs.directory import default_directory
    from rlframe.runs.display import make_display

    disable_progress_bar()  # of transformers: the display shows progress
    directory = output or default_directory(recipe)
    display = make_display(Console())
    try:
        outcome = run_recipe(loaded, directory, display, registry=registry)
    finally:
        display.close()
    Console().print(f"Everything is in {outcome.directory}", markup=False, soft_wrap=True)
