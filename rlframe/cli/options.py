"""Options that several commands share."""

from __future__ import annotations

from typing import Annotated

import typer

from rlframe.cli import completion
from rlframe.errors import did_you_mean
from rlframe.registry.discovery import KINDS, Registry

Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        help="Changes to it, as in ppo.updates=10 or ~rewards.polite.",
        autocompletion=completion.overrides,
    ),
]
NoPlugin = Annotated[
    list[str] | None,
    typer.Option(
        "--no-plugin",
        help="Never import this distribution or distribution/name; may be repeated.",
        autocompletion=completion.distributions,
    ),
]
AllowLocalCode = Annotated[
    bool,
    typer.Option(
        "--allow-local-code", help="Let the recipe name components in files, ./file.py:X."
    ),
]


def installed(no_plugin: list[str] | None, *, allow_local_code: bool = False) -> Registry:
    """The components that a command may use.

    Raises:
      BadParameter: --no-plugin names nothing that is installed: a misspelt block would block nothing.
    """
    registry = Registry(block=no_plugin or (), local_code=allow_local_code)
    for name in no_plugin or ():
        if not registry.blocks(name):
            offers = [offer for kind in KINDS for offer in registry.offers(kind)]
            known = {name for o in offers for name in (o.distribution, o.qualified, o.name)}
            guess = did_you_mean(
                name, known - {"rlframe"}, called={o.name: o.qualified for o in offers}
            )
            raise typer.BadParameter(
                f"{name!r} blocks nothing: no installed distribution or component is called that."
                f"{guess} See `rlframe plugins list`",
                param_hint="--no-plugin",
            )
    return registry
