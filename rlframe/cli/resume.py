"""`rlframe resume RUN [key=value ...]`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rlframe.cli.options import AllowLocalCode, NoPlugin, installed
from rlframe.cli.running import (
    Processes,
    plugin_arguments,
    refuse_processes_inside_others,
    run,
)
from rlframe.recipe import load_recipe


def resume(
    directory: Annotated[Path, typer.Argument(metavar="RUN", help="The directory of a run.")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(help="Changes to its recipe, as in ppo.microbatch_tokens=1024."),
    ] = None,
    processes: Processes = 1,
    force: Annotated[
        bool, typer.Option("--force", help="Let changes through that make it another experiment.")
    ] = False,
    allow_changed_plugins: Annotated[
        bool,
        typer.Option("--allow-changed-plugins", help="Go on although a plugin is another version."),
    ] = False,
    allow_changed: Annotated[
        list[str] | None,
        typer.Option(
            "--allow-changed",
            metavar="NAME",
            help="What may have changed, as in data.reviews or model.policy; may be repeated.",
        ),
    ] = None,
    no_plugin: NoPlugin = None,
    allow_local_code: AllowLocalCode = False,
) -> None:
    """Resume a run that was stopped, killed or failed, as if it had never ended."""
    refuse_processes_inside_others(processes)
    registry = installed(no_plugin, allow_local_code=allow_local_code)
    from rlframe.runs.resuming import Allowance

    allowed = Allowance(force, allow_changed_plugins, frozenset(allow_changed or ()))
    if (problem := allowed.misspelt(directory)) is not None:
        raise typer.BadParameter(problem, param_hint="--allow-changed")
    recipe = allowed.begun(directory, overrides or [])
    loaded = load_recipe(recipe, overrides or [], registry=registry)
    given = [str(directory), *(overrides or [])]
    given += ["--force"] * force + ["--allow-changed-plugins"] * allow_changed_plugins
    given += [f"--allow-changed={name}" for name in allow_changed or ()]
    given += plugin_arguments(no_plugin, allow_local_code=allow_local_code)
    run(
        loaded,
        directory,
        registry,
        processes=processes,
        command=["resume", *given],
        again=["resume", *given],
        resume=allowed,
    )
