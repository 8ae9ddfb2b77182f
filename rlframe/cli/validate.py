"""`rlframe validate RECIPE [key=value ...]`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from rlframe.cli.options import AllowLocalCode, NoPlugin, installed
from rlframe.recipe import load_recipe
from rlframe.text import say


def validate(
    recipe: Annotated[Path, typer.Argument(help="A YAML recipe.")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(help="Changes to it, as in ppo.updates=10 or ~rewards.polite."),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print JSON alone: digest, stages and plugins.")
    ] = False,
    no_plugin: NoPlugin = None,
    allow_local_code: AllowLocalCode = False,
) -> None:
    """Check every key, plugin, reference and file of a recipe without opening a model."""
    registry = installed(no_plugin, allow_local_code=allow_local_code)
    loaded = load_recipe(recipe, overrides or [], registry=registry)
    stages = [s for s in ("sft", "reward_model", "ppo") if getattr(loaded.recipe, s) is not None]
    if as_json:
        plugins = {".".join(map(str, path)): c.offer.qualified for path, c in loaded.chosen.items()}
        say(json.dumps({"digest": loaded.digest, "stages": stages, "plugins": plugins}))
        return
    say(f"{recipe} is valid: {', '.join(stages)}; digest {loaded.digest[:12]}")
