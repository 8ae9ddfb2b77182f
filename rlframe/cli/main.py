"""`rlframe`: the commands, and how each kind of error ends."""

from __future__ import annotations

import sys

import typer

from rlframe.cli import plugins, train, validate
from rlframe.errors import RlframeError

INTERRUPTED = 130

app = typer.Typer(
    name="rlframe",
    help="PPO for language models, with rewards, KL controllers and losses as plugins.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=True,
)
app.command("train")(train.train)
app.command("validate")(validate.validate)
app.add_typer(plugins.app, name="plugins")


def main() -> None:
    """Run a command. Exit codes: 0 ok, 1 the run failed, 2 usage, 3 recipe, 4 plugin, 5 environment,
    130 interrupted.
    """
    try:
        app()
    except RlframeError as error:
        typer.echo(f"error: {error}", err=True)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        typer.echo("interrupted", err=True)
        sys.exit(INTERRUPTED)
