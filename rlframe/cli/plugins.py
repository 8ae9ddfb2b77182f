"""`rlframe plugins list`, and the commands for plugin authors."""

from __future__ import annotations

import json
from dataclasses import fields
from typing import Annotated

import typer

from rlframe.cli import check, describe, new
from rlframe.cli.options import NoPlugin, installed
from rlframe.registry.discovery import KINDS
from rlframe.registry.offers import Offer
from rlframe.text import cell, console, say, table

app = typer.Typer(help="The installed components.", no_args_is_help=True)

_SHOWN = tuple(f.name for f in fields(Offer) if f.name not in ("source", "blocked"))


@app.callback()
def plugins() -> None:
    """The installed components."""


app.command("check")(check.check_plugin)
app.command("show")(describe.show_plugin)
app.command("new")(new.new_plugin)


@app.command("list")
def list_plugins(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON alone.")] = False,
    no_plugin: NoPlugin = None,
) -> None:
    """What a recipe can name in `type:`, from metadata alone: nothing is imported."""
    registry = installed(no_plugin)
    offers = [offer for kind in KINDS for offer in registry.offers(kind)]
    if as_json:
        rows = [
            {name: getattr(o, name) for name in _SHOWN} | {"state": registry.state(o)}
            for o in offers
        ]
        say(json.dumps(rows))
        return
    columns = ("kind", "type", "distribution", "version", "defined in", "state")
    shown = table(*columns, whole=("type",))
    for o in offers:
        noun = KINDS[o.kind][1]
        row = (noun, o.name, o.distribution, o.version, o.target, registry.state(o))
        shown.add_row(*map(cell, row))
    console(width=160).print(shown)  # what is there to be copied must not be cut
