"""`rlframe`: the commands, and how each kind of error ends.

A command's module is imported when the command runs, so that `rlframe --help` reads no recipe schema.
"""

from __future__ import annotations

import gc
import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from rlframe import __version__
from rlframe.distributed.child import finished, take_reports, tell
from rlframe.distributed.ending import in_time
from rlframe.errors import RlframeError, RunError
from rlframe.text import say, visible

INTERRUPTED = 130
DEBUG = "RLFRAME_DEBUG"
"""Environment variable, which --debug sets for the processes of a run: show tracebacks."""

COMMANDS = {
    "train": "Run every stage of a recipe: supervised fine-tuning, reward model, PPO.",
    "resume": "Resume a run that was stopped, killed or failed, as if it had never ended.",
    "generate": "Write responses of a run's model to prompts, as JSON Lines.",
    "chat": "Talk to a run's model: a line is a turn, or a prompt to continue.",
    "validate": "Check a recipe, its data and its folders of models, without opening a model.",
    "plan": "Predict memory and time of PPO updates on GPUs, and say which strategies fit.",
    "doctor": "Say what is healthy in a run and what is not, or describe the environment.",
    "show": "Print a recipe as it is after extends, overrides and ${...}.",
    "schema": "Print the JSON Schema of a recipe, for editors.",
    "convert": "Make a recipe of a file of TRL, OpenRLHF or LLaMA-Factory.",
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

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """--debug may stand anywhere: it is added to a command line that has just failed."""
        debug = "--debug" in args
        return super().parse_args(ctx, ["--debug"] * debug + [a for a in args if a != "--debug"])

    def make_context(self, *given: Any, **extra: Any) -> Any:
        with _usage():
            return super().make_context(*given, **extra)

    def invoke(self, ctx: Any) -> Any:
        with _usage():
            try:
                return super().invoke(ctx)
            except SystemExit as error:  # of a plugin: the command line's own comes later
                from rlframe.registry.owners import exit_told

                raise RunError(exit_told(error)) from error


@contextmanager
def _usage() -> Iterator[None]:
    """What a wrong use quotes is foreign text; the command line's library shows it as it is."""
    try:
        yield
    except Exception as error:
        if hasattr(error, "format_message"):
            shown = visible(error.format_message())
            setattr(error, "format_message", lambda: shown)  # noqa: B010  a method, for mypy
        raise


app = typer.Typer(
    name="rlframe",
    cls=_Commands,
    help="PPO for language models, with rewards, KL controllers and losses as plugins.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=True,
)


def _version(asked: bool) -> None:
    if asked:
        say(f"rlframe {__version__}")
        raise typer.Exit()


@app.callback()
def rlframe(
    debug: Annotated[
        bool, typer.Option("--debug", help="Show the traceback of whatever goes wrong.")
    ] = False,
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    """PPO for language models, with rewards, KL controllers and losses as plugins."""
    if debug:
        os.environ[DEBUG] = "1"


@in_time
def main() -> None:
    """Run a command, and raise SystemExit with its exit code: 0 ok, 1 the run failed, 2 usage,
    3 recipe, 4 plugin, 5 environment, 130 interrupted.
    """
    reports, before = take_reports(), os.environ.get(DEBUG)
    try:
        code = _outcome(reports)
    finally:
        os.environ.pop(DEBUG, None)
        if before is not None:
            os.environ[DEBUG] = before
    if code == 0:
        finished(reports)
    sys.exit(code)


def _outcome(reports: Path | None) -> int:
    """The exit code of a command; what went wrong is reported."""
    try:
        app()
    except SystemExit as end:  # the command line's library ends so, and nobody else
        return int(end.code or 0)
    except BaseException as error:
        code, message = _told(error)
        if os.environ.get(DEBUG, "0") not in ("", "0"):
            message = f"{traceback.format_exc()}{message}"
        tell(message, code, error, reports=reports)
        return code
    return 0


def _told(error: BaseException) -> tuple[int, str]:
    """(the exit code for an error, what to say of it)."""
    if isinstance(error, RlframeError):
        return error.exit_code, f"error: {error}"
    if isinstance(error, KeyboardInterrupt):
        return INTERRUPTED, "interrupted"
    from rlframe.cli.mishaps import described

    return 1, described(error)
