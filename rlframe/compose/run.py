"""From a project through its stages: sft, reward_model, ppo, each from what the one before left."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from rlframe.compose.checks import check
from rlframe.compose.components import check_controller
from rlframe.compose.inputs import inputs_of
from rlframe.compose.machine import saver_of
from rlframe.compose.ppo import alignment, check_adapters
from rlframe.compose.project import Project
from rlframe.engine.generation import list_ends
from rlframe.errors import RlframeError, RunError, Stopped, keep_traceback
from rlframe.models.policy import Policy
from rlframe.recipe import LoadedRecipe
from rlframe.recipe.document import dotted
from rlframe.recipe.schema import FineTuning
from rlframe.registry.discovery import Registry, fingerprint
from rlframe.registry.owners import no_exit
from rlframe.runs.directory import RunDirectory, refuse_used
from rlframe.runs.display import Display, SilentDisplay
from rlframe.runs.lock import RunLock
from rlframe.runs.resuming import Allowance
from rlframe.runs.saving import Saver
from rlframe.runs.stopping import StopRequest
from rlframe.stages.ppo import Aligned
from rlframe.stages.reward_model import pair_accuracy, train_reward_model
from rlframe.stages.sft import fine_tune, perplexity
from rlframe.stages.supervised import FineTuningSettings
from rlframe.types import ENDS_WITH_TURN

_EVALUATION_TOKENS = 8192  # padded tokens in one forward pass without gradient


@dataclass(frozen=True)
class Outcome:
    """What a run came to."""

    directory: Path
    figures: dict[str, float]
    """sft/perplexity and reward_model/accuracy, where those stages ran."""
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
      display: told what happens.
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
    recipe, aligned = project.recipe, None
    figures: dict[str, float] = {}

    def saver(name: str) -> Saver:
        return saver_of(recipe.checkpoints, name, files, project.runtime, stop)

    done = _sound_stages(project, files, display)
    tuned = files.path / "sft" if "sft" in done else None
    policy = project.models.policy(tuned).to(project.runtime.device)
    list_ends(policy, project.tokenizer)
    for name, stage in (("sft", _sft), ("reward_model", _reward_model)):
        if getattr(recipe, name) is None:
            continue
        if name not in done:
            files.forget(name)
            done[name] = stage(project, policy, files, display, saver(name))
            files.finish(name, done[name])
        figures |= done[name]
    if recipe.ppo is not None:
        prompts, _ = project.prompts
        display.stage("ppo", f"{recipe.ppo.updates} updates on {len(prompts)} prompts")
        _say_notes(project, "ppo", display)
        aligned = alignment(project, policy, files, display, saver("ppo"))
    return Outcome(files.path, figures, aligned)


def _sound_stages(
    project: Project, files: RunDirectory, display: Display
) -> dict[str, dict[str, float]]:
    """Stage -> figures, of those that are finished and whose result is as it was written."""
    done = {}
    for name in ("sft", "reward_model"):
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


def _say_notes(project: Project, stage: str, display: Display) -> None:
    for note in project.data.stage_notes(stage):
        display.say(f"{stage}: {note}")


def _sft(
    project: Project, policy: Any, files: RunDirectory, display: Display, saver: Saver
) -> dict[str, float]:
    stage = project.recipe.sft
    assert stage is not None
    train, heldout = project.sft_examples.train, project.sft_examples.heldout
    display.stage("sft", f"{len(train)} examples from {stage.data!r}, {len(heldout)} held out")
    _say_notes(project, "sft", display)
    fine_tune(
        policy,
        train,
        pack_to=stage.max_tokens if stage.pack else None,
        profile=project.profiles.of("model.policy", policy),
        vocabulary=project.profiles.vocabulary,
        settings=_settings(project, stage),
        progress=display.step,
        saver=saver,
    )
    with project.runtime.mixed_precision():
        found = perplexity(
            Policy(
                policy,
                temperature=1.0,
                chunk=1024,
                profile=project.profiles.of("model.policy", policy),
                vocabulary=project.profiles.vocabulary,
            ),
            heldout,
            budget=_EVALUATION_TOKENS,
            runtime=project.runtime,
        )
    _save(project, policy, project.tokenizer, files, "sft")
    figures = {"sft/perplexity": found}
    files.metrics({"stage": "sft", **figures})
    display.say(f"sft: held-out perplexity {found:.2f}")
    return figures


def _reward_model(
    project: Project, policy: Any, files: RunDirectory, display: Display, saver: Saver
) -> dict[str, float]:
    stage = project.recipe.reward_model
    assert stage is not None
    train, heldout = project.pairs.train, project.pairs.heldout
    display.stage(
        "reward_model", f"{len(train)} pairs from {stage.data!r}, {len(heldout)} held out"
    )
    _say_notes(project, "reward_model", display)
    model = project.models.reward_model(policy)
    model.to(project.runtime.device)
    setattr(model.config, ENDS_WITH_TURN, True)
    train_reward_model(
        model,
        train,
        center=stage.center,
        settings=_settings(project, stage),
        progress=display.step,
        saver=saver,
    )
    with project.runtime.mixed_precision():
        found = pair_accuracy(
            model,
            heldout,
            budget=_EVALUATION_TOKENS,
            runtime=project.runtime,
        )
    _save(project, model, project.models.reward_tokenizer, files, "reward_model")
    figures = {"reward_model/accuracy": found}
    files.metrics({"stage": "reward_model", **figures})
    display.say(f"reward_model: held-out pairwise accuracy {found:.1%}")
    return figures


def _save(
    project: Project,
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    files: RunDirectory,
    stage: str,
) -> None:
    def fill(path: Path) -> None:
        model.save_pretrained(path)
        tokenizer.save_pretrained(path)

    files.write_result(stage, fill)
    project.runtime.barrier()  # the next stage reads it on every rank


def _settings(project: Project, stage: FineTuning) -> FineTuningSettings:
    return FineTuningSettings(
        epochs=stage.epochs,
        batch_size=stage.batch_size,
        processes=project.runtime.world_size,
        learning_rate=stage.learning_rate,
        warmup_share=stage.warmup_share,
        weight_decay=stage.weight_decay,
        seed=project.recipe.seed,
        cpu=project.runtime.device.type == "cpu",
        autocast=project.runtime.mixed_precision,
    )
