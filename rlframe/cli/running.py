"""What `train` and `resume` share: one process runs the recipe, or several are started that do."""

from __future__ import annotations

import atexit
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rlframe.distributed.child import refuse_odd_environment
from rlframe.distributed.copies import refuse_copies, unused_tasks
from rlframe.errors import Stopped
from rlframe.recipe import LoadedRecipe
from rlframe.registry.discovery import Registry
from rlframe.text import console, say

if TYPE_CHECKING:
    from rlframe.runs.resuming import Allowance

Processes = Annotated[
    int,
    typer.Option(
        min=1,
        max=1024,
        help="Processes on this machine that share the work; one a GPU where there are any.",
    ),
]


def refuse_processes_inside_others(processes: int) -> None:
    """Make sure that a process which torchrun started does not start more, and that no copy runs
    beside it.

    Raises:
      BadParameter: it was asked to.
      SetupError: the environment says what no process of several can be, or a scheduler has started
        this command several times.
    """
    refuse_odd_environment()
    refuse_copies(os.environ)
    remark = unused_tasks(os.environ, processes=processes)
    if remark is not None:
        say(f"note: {remark}", err=True)
    if processes > 1 and "WORLD_SIZE" in os.environ:
        raise typer.BadParameter(
            f"WORLD_SIZE is set: this is one of {os.environ['WORLD_SIZE']} processes that torchrun, or "
            "whoever set it, has started. Leave --processes out, or start rlframe by itself",
            param_hint="--processes",
        )


def plugin_arguments(no_plugin: Sequence[str] | None, *, allow_local_code: bool) -> list[str]:
    """The options on plugins, as the ranks are to be given them."""
    return [f"--no-plugin={name}" for name in no_plugin or ()] + (
        ["--allow-local-code"] * allow_local_code
    )


def run(
    loaded: LoadedRecipe,
    directory: Path,
    registry: Registry,
    *,
    processes: int,
    command: Sequence[str],
    again: Sequence[str],
    resume: Allowance | None = None,
) -> None:
    """Run a recipe here, or in several processes.

    Args:
      loaded: checked before anything is started: a typo answers at once, and torch comes only now.
      directory: of the run.
      registry: the installed components.
      processes: how many share the work.
      command: the command line of each of several processes, after `rlframe`.
      again: that with which they go on, if one of them knows a remedy for what ended them.
      resume: how far a run that is resumed may have changed; None for a new one.
    """
    # On a CPU, torch takes large tensors from huge pages, which is faster; tests/benchmarks/README.md
    # has the command that shows it. torch reads this when it is imported.
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    if processes > 1:
        threads = loaded.recipe.runtime.threads
        raise typer.Exit(_launched(command, again, processes=processes, threads=threads))
    from transformers.utils.logging import disable_progress_bar

    from rlframe.compose import run_recipe
    from rlframe.distributed.child import refuse_missing_gpus
    from rlframe.distributed.runtime import leave
    from rlframe.runs.display import make_display

    refuse_missing_gpus(loaded.recipe.runtime.device)
    disable_progress_bar()  # of transformers: the display shows progress
    display = make_display(console())
    try:
        outcome = run_recipe(loaded, directory, display, registry=registry, resume=resume)
    except Stopped:
        atexit.register(leave)
        raise
    finally:
        display.close()
    if os.environ.get("RANK", "0") == "0":
        say(f"Everything is in {outcome.directory}")
    atexit.register(leave)


def _launched(
    arguments: Sequence[str], again: Sequence[str], *, processes: int, threads: int | None
) -> int:
    """The exit code of `rlframe` with these arguments in several processes.

    Where a process has run out of memory inside of what all of them wait for, only new ones can go on.
    """
    from rlframe.distributed.launch import launch

    # `-m` puts the current directory in front of the path; a file there must not hide a library.
    here = os.getcwd() in sys.path or "" in sys.path
    program = [sys.executable, *([] if here else ["-P"]), "-m", "rlframe"]
    ended = launch([*program, *arguments], processes=processes, threads=threads)
    while ended.remedy is not None:
        say(f"Resuming from the last checkpoint with {ended.remedy}", err=True)
        ended = launch([*program, *again, ended.remedy], processes=processes, threads=threads)
    return ended.exit_code
