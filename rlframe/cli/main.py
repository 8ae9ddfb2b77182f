"""`rlframe`: the commands, and how each kind of error ends.

A command's module is imported when the command runs, so that `rlframe --help` reads no recipe schema.
"""

from __future__ import annotations

import gc
import sys
import traceback
from importlib import import_module
from types import ModuleType
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from rlframe.distributed.child import take_reports, tell
from rlframe.errors import RlframeError

INTERRUPTED = 130

COMMANDS = {
    "train": "Run every stage of a recipe: supervised fine-tuning, reward model, PPO.",
    "resume": "Go on with a run that was stopped, killed or failed, as if it had never ended.",
    "validate": "Check every key, plugin, reference and file of a recipe without opening a model.",
    "plan": "Predict memory and time of PPO updates on GPUs, and say which strategies fit.",
    "show": "Print a recipe as it is after extends, overrides and ${...}.",
    "schema": "Print the JSON Schema of a recipe, for editors.",
    "recipes": "The recipes that come with rlframe.",
    "plugins": "The installed components.",
}
"""The name of each command, which is that of its module, and its first line of help.

A module has a function of that name, or an `app` with commands of its own.
"""


class _Deferred(TyperCommand):
    """Stands in the list of commands for one whose module is not imported yet."""

    def make_context(self, info_name: str | None, args: list[str], *rest: Any, **extra: Any) -> Any:
        module = _imported(f"rlframe.cli.{self.name}")
        if hasattr(module, "app"):
            command = module.app
        else:
            command = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
            command.command(self.name)(getattr(module, str(self.name)))
        return typer.main.get_command(command).make_context(info_name, args, *rest, **extra)


def _imported(name: str) -> ModuleType:
    """What is imported stays, so nobody need look for garbage among it while it comes."""
    if name not in sys.modules:
        gc.disable()
        import_module(name)
        gc.freeze()
        gc.enable()
    return sys.modules[name]


class _Commands(TyperGroup):
    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.commands = {name: _Deferred(name, help=text) for name, text in COMMANDS.items()}


app = typer.Typer(
    name="rlframe",
    cls=_Commands,
    help="PPO for language models, with rewards, KL controllers and losses as plugins.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=True,
)


@app.callback()
def rlframe() -> None:
    """PPO for language models, with rewards, KL controllers and losses as plugins."""


def main() -> None:
    """Run a command. Exit codes: 0 ok, 1 the run failed, 2 usage, 3 recipe, 4 plugin, 5 environment,
    130 interrupted.
    """
    reports = take_reports()
    try:
        app()
    except RlframeError as error:
        tell(f"error: {error}", error.exit_code, error, reports=reports)
        sys.exit(error.exit_code)
    except KeyboardInterrupt as error:
        tell("interrupted", INTERRUPTED, error, reports=reports)
        sys.exit(INTERRUPTED)
    except Exception as error:
        if reports is None:
            raise
        tell(traceback.format_exc().rstrip(), 1, error, reports=reports)
        sys.exit(1)
