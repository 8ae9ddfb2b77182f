"""`rlframe recipes list|copy`: the recipes that come with rlframe."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from rlframe.cli import completion
from rlframe.errors import RecipeError, SetupError, did_you_mean, listed
from rlframe.text import say

FOLDER = Path(__file__).parents[1] / "recipe_files"
"""A link to the folder `recipes` of the sources; an installed wheel has copies there."""

app = typer.Typer(help="The recipes that come with rlframe.", no_args_is_help=True)


@app.command("list")
def list_recipes(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON alone.")] = False,
) -> None:
    """The names of the recipes, and what each one is for."""
    about = {name: _about(path) for name, path in known_recipes().items()}
    if as_json:
        say(json.dumps([{"name": name, "about": text} for name, text in about.items()]))
        return
    width = max(map(len, about))
    for name, text in about.items():
        say(f"{name:{width}}  {text}")


@app.command("copy")
def copy(
    name: Annotated[
        str,
        typer.Argument(help="One of `rlframe recipes list`.", autocompletion=completion.recipes),
    ],
    to: Annotated[Path | None, typer.Argument(help="A file or folder; here if left out.")] = None,
) -> None:
    """Copy a recipe, to change it or to run it as it is."""
    known, wanted = known_recipes(), name.removesuffix(".yaml")
    if wanted not in known:
        raise RecipeError(
            f"no recipe called {name!r} comes with rlframe.{did_you_mean(wanted, known)} "
            f"There are: {listed(known)}"
        )
    source, target = known[wanted], to or Path()
    target = target / source.name if target.is_dir() else target
    try:
        with target.open("x", encoding="utf-8") as file:  # never over a recipe of the user's
            file.write(source.read_text(encoding="utf-8"))
    except FileExistsError as error:
        raise SetupError(f"{target} exists already; give another name") from error
    except OSError as error:
        raise SetupError(f"{target} cannot be written: {error.strerror}") from error
    say(f"{target} is there; run it with: rlframe train {target}")


def known_recipes() -> dict[str, Path]:
    """The recipes that come with rlframe, by the names that `copy` takes."""
    paths = sorted(FOLDER.rglob("*.yaml"))
    return {path.relative_to(FOLDER).with_suffix("").as_posix(): path for path in paths}


def _about(path: Path) -> str:
    """The remark that a recipe begins with, its first line."""
    first = path.read_text(encoding="utf-8").partition("\n")[0]
    return first.removeprefix("#").strip() if first.startswith("#") else ""
