"""`rlframe plugins new NAME --kind KIND`."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated, Literal

import typer

from rlframe.cli.check import KIND_WORDS
from rlframe.registry.discovery import Registry
from rlframe.registry.offers import CORE
from rlframe.text import say


def new_plugin(
    name: Annotated[str, typer.Argument(help="What a recipe will write in `type:`.")],
    kind: Annotated[
        Literal[
            "reward",
            "transform",
            "kl",
            "loss",
            "advantage",
            "policy_loss",
            "value_loss",
            "sampler",
            "generator",
            "hook",
        ],
        typer.Option(help="What it will be."),
    ],
    directory: Annotated[
        Path, typer.Option(help="Where its folder, rlframe-NAME, will stand.")
    ] = Path(),
) -> None:
    """Write a distribution that installs, passes its tests and trains: begin from there."""
    from rlframe.testing.scaffold import name_problem, write_plugin

    problem = name_problem(name) or _taken(name, KIND_WORDS[kind])
    if problem:
        raise typer.BadParameter(problem, param_hint="NAME")
    root = write_plugin(name, word=kind, kind=KIND_WORDS[kind], parent=directory)
    for path in sorted(path for path in root.rglob("*") if path.is_file()):
        say(path)
    folder = shlex.quote(str(root))
    say(
        "\nIt works as it is. Install, check, run:\n\n"
        f"  pip install --no-build-isolation -e {folder}\n"
        f"  rlframe plugins check {kind}:{name}\n"
        f"  rlframe train {shlex.quote(str(root / 'recipes' / f'{name}.yaml'))}\n"
    )


def _taken(name: str, kind: str) -> str | None:
    """A built-in name always means the built-in."""
    offers = [o for o in Registry().offers(kind) if o.name == name and o.distribution == CORE]
    return (
        f"{offers[0]} has this name already, and a built-in cannot be shadowed" if offers else None
    )
