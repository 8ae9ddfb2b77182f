"""`rlframe train RECIPE [key=value ...]`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rlframe.cli.options import AllowLocalCode, NoPlugin, Overrides, installed
from rlframe.cli.running import (
    Processes,
    plugin_arguments,
    refuse_processes_inside_others,
    run,
)
from rlframe.recipe import load_recipe


def train(
    recipe: Annotated[Path, typer.Argument(help="A YAML recipe.")],
    overrides: Overrides = None,
    output: Annotated[
        Path | None, typer.Option(help="Run directory; runs/<recipe>-<time> if left out.")
    ] = None,
    processes: Processes = 1,
    no_plugin: NoPlugin = None,
    allow_local_code: AllowLocalCode = False,
) -> None:
    """Run every stage of a recipe: supervised fine-tuning, reward model, PPO."""
    refuse_processes_inside_others(processes)
    registry = installed(no_plugin, allow_local_code=allow_local_code)
    loaded = load_recipe(recipe, overrides or [], registry=registry)
    from rlframe.runs.directory import default_directory, refuse_used

    directory = output or default_directory(recipe)
    refuse_used(directory)
    plugins = plugin_arguments(no_plugin, allow_local_code=allow_local_code)
    run(
        loaded,
        directory,
        registry,
        processes=processes,
        command=["train", str(recipe), *(overrides or []), "--output", str(directory), *plugins],
        again=["resume", str(directory), *plugins],
    )
