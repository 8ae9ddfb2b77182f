"""From a project through its stages, each from what the ones before it left."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlframe.compose.checks import check
from rlframe.compose.components import check_controller
from rlframe.compose.inputs import inputs_of
from rlframe.compose.machine import saver_of
from rlframe.compose.ppo import check_adapters
from rlframe.compose.project import Project
from rlframe.compose.sampler_probe import check_sampler_of_architecture
from rlframe.engine.generation import list_ends
from rlframe.errors import RlframeError, RunError, Stopped, keep_traceback
from rlframe.recipe import LoadedRecipe
from rlframe.recipe.document import dotted
from rlframe.registry.discovery import Registry, fingerprint
from rlframe.registry.owners import no_exit
from rlframe.runs.directory import RunDirectory, refuse_used
from rlframe.runs.display import Display, SilentDisplay
from rlframe.runs.lock import RunLock
from rlframe.runs.resuming import Allowance
from rlframe.runs.stopping import StopRequest
from rlframe.stage_table import running
from rlframe.stages.ppo import Aligned
from rlframe.stages.stage import Trained


@dataclass(frozen=True)
class Outcome:
    """What a run came to."""

    directory: Path
    figures: dict[str, float]
    """STAGE/METRIC -> value on held-out examples, such as sft/perplexity."""
    aligned: Aligned | None
    """What PPO changed, if it ran."""


def run_recipe(
    loaded: LoadedRecipe,
    directory: Path,
    display: Display,
    *,
    registry: Registry | None = None,
    resume: Allowance | None = None,
) -> Outcome:
    """Run every stage of a recipe.

    Args:
      loaded: a validated recipe.
      directory: a new run directory, or that of the run to resume.
      display: shows what happens.
      registry: the installed components; a fresh look at the environment if left out.
      resume: an earlier run is resumed, which may differ so far from the recipe and plugins it had.

    Raises:
      Stopped: the run was asked to end, and can be resumed.
      RlframeError: whatever went wrong; the manifest says so too.
    """
    if resume is None:
        refuse_used(directory)
    else:
        resume.read(directory)
    project = Project(loaded, directory, registry or Registry())
    display = display if project.runtime.main else SilentDisplay()
    plugins = _plugins(loaded)
    project.runtime.agree("the recipe", loaded.digest)
    for path, used in plugins.items():
        for part, value in used.items():
            project.runtime.agree(f"{part} of the plugin at {path}", value)
    check(project)  # before anything is written: a recipe that is refused can be fixed and run
    check_adapters(project)
    check_controller(project)
    for note in (*project.notes, *project.profiles.probe()):
        display.say(note)
    check_sampler_of_architecture(project)
    facts: dict[str, Any] = {
        "resolved": loaded.resolved(),
        "plugins": plugins,
        "inputs": inputs_of(project, display.say),
    }
    runtime = project.runtime
    with ExitStack() as held:
        files = (
            _new(held, project)
            if resume is None
            else _resumed(held, project, resume, facts, display)
        )
        stop = held.enter_context(StopRequest(loaded.recipe.checkpoints.stop_after_minutes))
        repaired = files.begin(
            source=loaded.source,
            digest=loaded.digest,
            processes=runtime.world_size,
            strategy=str(runtime.strategy),
            **facts,
        )
        if repaired is not None:
            display.say(repaired)
        try:
            with no_exit("the run"):
                outcome = _stages(project, files, display, stop)
        except BaseException as error:
            stopped = isinstance(error, KeyboardInterrupt | Stopped)
            reason = str(error) if isinstance(error, RlframeError) else repr(error)
            with suppress(RunError):  # a full disk must not hide what happened
                files.end("interrupted" if stopped else "failed", error=reason)
            if not stopped:
                _keep(error, files.path, runtime.rank)
            if isinstance(error, Stopped):
                raise Stopped(f"{reason}; resume with: rlframe resume {files.path}") from error
            raise
        early = None if outcome.aligned is None else outcome.aligned.stopped
        status = "finished" if early is None else "stopped_early"
        files.end(status, figures=outcome.figures, error=None, stopped=early)
    return outcome


def _keep(error: BaseException, run: Path, rank: int) -> None:
    """Keep the traceback beside the run: a message names one place, and there may be more to see."""
    keep_traceback(error, run, "traceback.txt" if rank == 0 else f"traceback.rank{rank}.txt")
    error.add_note(f"Once that is fixed: rlframe resume {run}")


def _plugins(loaded: LoadedRecipe) -> dict[str, dict[str, Any]]:
    """Recipe path -> fingerprint of each component, whose config holds no secret."""
    found = {}
    for path, chosen in loaded.chosen.items():
        used = fingerprint(chosen.offer, chosen.component, chosen.config)
        found[dotted(path)] = used | {"config": loaded.document.shown(used["config"], path)}
    return found


def _new(held: ExitStack, project: Project) -> RunDirectory:
    """A directory of its own for a run that begins."""
    files = RunDirectory(project.directory, main=project.runtime.main)
    if files.main:
        held.enter_context(RunLock(files.path))
    return files


def _resumed(
    held: ExitStack,
    project: Project,
    resume: Allowance,
    facts: Mapping[str, Any],
    display: Display,
) -> RunDirectory:
    """The directory of the run that is resumed, if it is still that run.

    Its manifest is read while nobody else writes it: a process that is just ending has the lock.
    """
    runtime, path = project.runtime, project.directory
    if runtime.main:
        held.enter_context(RunLock(path))
    runtime.barrier()
    for line in resume.check(path, facts["resolved"], facts["plugins"], facts["inputs"]):
        display.say(line)
    manifest = runtime.broadcast(resume.read(path) if runtime.main else {})
    return RunDirectory(path, main=runtime.main, manifest=manifest)


def _stages(project: Project, files: RunDirectory, display: Display, stop: StopRequest) -> Outcome:
    """Run the stages that are not done, each from the policy that those before it left."""
    recipe = project.recipe
    done = _sound_results(project, files, display)
    figures: dict[str, float] = {}
    aligned, policy, lies = None, None, None
    for stage in running(recipe):
        name = stage.name
        if name in done:
            figures |= done[name]
            if stage.result == "policy":
                policy, lies = None, files.path / name
            continue
        if policy is None:
            policy = _policy(project, lies)
        run = project.stages[name]
        display.stage(name, run.headline)
        for note in run.notes:
            display.say(f"{name}: {note}")
        if stage.result is not None:
            files.forget(name)
        saver = saver_of(recipe.checkpoints, name, files, project.runtime, stop)
        left = run.run(policy, files, display, saver)
        if isinstance(left, Aligned):
            aligned = left
            continue
        figures |= _kept(project, left, files, display, name)
        policy = left.model if stage.result == "policy" else policy
    return Outcome(files.path, figures, aligned)


def _policy(project: Project, lies: Path | None) -> Any:
    """The policy on its device, as the recipe names it or as a finished stage left it."""
    policy = project.models.policy(lies).to(project.runtime.device)
    list_ends(policy, project.tokenizer)
    return policy


def _kept(
    project: Project, left: Trained, files: RunDirectory, display: Display, stage: str
) -> dict[str, float]:
    """The metrics of a stage, once its result is on the disk."""

    def fill(path: Path) -> None:
        left.model.save_pretrained(path)
        left.tokenizer.save_pretrained(path)

    files.write_result(stage, fill)
    project.runtime.barrier()  # the next stage reads it on every rank
    figures = {f"{stage}/{name}": value for name, value in left.metrics.items()}
    files.metrics({"stage": stage, **figures})
    display.say(f"{stage}: {left.sentence}")
    files.finish(stage, figures)
    return figures


def _sound_results(
    project: Project, files: RunDirectory, display: Display
) -> dict[str, dict[str, float]]:
    """Stage -> figures, of those that are finished and whose result is as it was written."""
    done = {}
    for name in (stage.name for stage in running(project.recipe) if stage.result is not None):
        figures = files.finished(name)
        if figures is None:
            continue
        damage = project.runtime.broadcast(_damage(files, name) if files.main else None)
        if damage is None:
            done[name] = figures
        else:
            display.say(f"{damage}. The stage {name} is run again")
    return done


def _damage(files: RunDirectory, stage: str) -> str | None:
    try:
        files.result(stage)
    except RunError as error:
        return str(error)
    return None
