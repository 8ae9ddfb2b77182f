"""`rlframe validate RECIPE [key=value ...]`."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Annotated, Any

import typer

from rlframe.cli.options import AllowLocalCode, NoPlugin, Overrides, installed
from rlframe.errors import PluginError, RlframeError
from rlframe.recipe import load_recipe
from rlframe.recipe.document import dotted
from rlframe.stage_table import running
from rlframe.text import say


def validate(
    recipe: Annotated[Path, typer.Argument(help="A YAML recipe.")],
    overrides: Overrides = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print JSON alone: digest, stages, plugins, or problems.")
    ] = False,
    no_plugin: NoPlugin = None,
    allow_local_code: AllowLocalCode = False,
) -> None:
    """Check a recipe, its data and its folders of models, without opening a model."""
    from rlframe.compose.preflight import left_out, look

    registry = installed(no_plugin, allow_local_code=allow_local_code)
    try:
        loaded = load_recipe(recipe, overrides or [], registry=registry, look=look)
    except RlframeError as error:
        if as_json:
            say(json.dumps({"valid": False, "problems": _problems(error)}))
        raise
    stages = [stage.name for stage in running(loaded.recipe)]
    unseen = left_out(loaded.recipe, loaded.chosen)
    if as_json:
        plugins = {".".join(map(str, path)): c.offer.qualified for path, c in loaded.chosen.items()}
        found = {
            "digest": loaded.digest,
            "stages": stages,
            "plugins": plugins,
            "not_looked_at": unseen,
        }
        say(json.dumps({"valid": True, **found}))
        return
    say(f"{recipe} is valid: {', '.join(stages)}; digest {loaded.digest[:12]}")
    if unseen:
        say(f"not looked at: {', '.join(unseen)}")


def _problems(error: RlframeError) -> list[dict[str, Any]]:
    """One object a mistake; what is wrong with the file as a whole has no path."""
    if not error.problems:
        return [_problem("", None, str(error), type(error))]
    return [_problem(p.place, dotted(p.path), p.message, p.error) for p in error.problems]


def _problem(
    place: str, path: str | None, message: str, kind: type[RlframeError]
) -> dict[str, Any]:
    """Where, what, and whether the recipe or a plugin is at fault.

    `place` is as the message has it: FILE:LINE:COLUMN, or the override that wrote the value.
    """
    found = _PLACE.match(place or message)
    file, line, column = found.groups() if found else (None, None, None)
    return {
        "place": place or None,
        "file": file,
        "line": None if line is None else int(line),
        "column": None if column is None else int(column),
        "path": path,
        "message": message,
        "kind": "plugin" if issubclass(kind, PluginError) else "recipe",
    }


_PLACE = re.compile(r"(.+?):(\d+):(\d+)(?=$|: )")
