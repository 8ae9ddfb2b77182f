"""From a project through its stages: sft, reward_model, ppo, each from what the one before left."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlframe.build.alignment import alignment
from rlframe.build.project import Project
from rlframe.errors import RlframeError
from rlframe.hooks.registry import Registry, fingerprint
from rlframe.models import loading
from rlframe.models.policy import Policy
from rlframe.recipe import LoadedRecipe
from rlframe.recipe.schema import FineTuning, NewModel
from rlframe.runs.directory import RunDirectory, refuse_used
from rlframe.runs.display import Display
from rlframe.stages.ppo import Aligned
from rlframe.stages.reward_model import pair_accuracy, train_reward_model
from rlframe.stages.sft import fine_tune, perplexity
from rlframe.stages.supervised import FineTuningSettings

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
) -> Outcome:
    """Run every stage of a recipe.

    Args:
      loaded: a validated recipe.
      directory: a new run directory.
      display: told what happens.
      registry: the installed components; a fresh look at the environment if left out.

    Raises:
      RlframeError: whatever went wrong; the manifest says so too.
    """
    refuse_used(directory)
    project = Project(loaded, directory, registry or Registry())
    project.check()  # before anything is written: a recipe that is refused can be mended and run
    files = RunDirectory(directory)
    plugins = {
        ".".join(map(str, path)): fingerprint(c.offer, c.component, c.config)
        for path, c in loaded.chosen.items()
    }
    project.runtime.agree("the recipe", loaded.digest)
    for path, used in plugins.items():
        project.runtime.agree(f"the plugin at {path}", used)
    files.begin(
        source=loaded.source,
        resolved=loaded.resolved(),
        digest=loaded.digest,
        plugins=plugins,
    )
    try:
        outcome = _stages(project, files, display)
    except BaseException as error:
        interrupted = isinstance(error, KeyboardInterrupt)
        reason = str(error) if isinstance(error, RlframeError) else repr(error)
        files.end("interrupted" if interrupted else "failed", error=reason)
        raise
    files.end("finished", figures=outcome.figures)
    return outcome


def _stages(project: Project, files: RunDirectory, display: Display) -> Outcome:
    recipe, figures, aligned = project.recipe, {}, None
    policy = _language_model(project).to(project.runtime.device)
    if recipe.sft is not None:
        figures["sft/perplexity"] = _sft(project, policy, files, display)
    if recipe.reward_model is not None:
        figures["reward_model/accuracy"] = _reward_model(project, policy, files, display)
    if recipe.ppo is not None:
        prompts, _ = project.prompts
        display.stage("ppo", f"{recipe.ppo.updates} updates on {len(prompts)} prompts")
        aligned = alignment(project, policy, files, display)
    return Outcome(files.path, figures, aligned)


def _language_model(project: Project) -> Any:
    policy = project.recipe.model.policy
    if isinstance(policy, NewModel):
        return loading.new_language_model(
            policy.architecture, project.tokenizer, dtype=project.dtype, seed=project.recipe.seed
        )
    return loading.load_language_model(policy, project.tokenizer, dtype=project.dtype)


def _sft(project: Project, policy: Any, files: RunDirectory, display: Display) -> float:
    stage = project.recipe.sft
    assert stage is not None
    train, heldout = project.sft_examples
    display.stage("sft", f"{len(train)} examples from {stage.data!r}, {len(heldout)} held out")
    fine_tune(
        policy,
        train,
        pack_to=stage.max_tokens if stage.pack else None,
        settings=_settings(project, stage),
        progress=display.step,
    )
    found = perplexity(
        Policy(policy, temperature=1.0, chunk=1024),
        heldout,
        budget=_EVALUATION_TOKENS,
    )
    _save(policy, project, "sft")
    files.metrics({"stage": "sft", "sft/perplexity": found})
    display.say(f"sft: held-out perplexity {found:.2f}")
    return found


def _reward_model(project: Project, policy: Any, files: RunDirectory, display: Display) -> float:
    stage = project.recipe.reward_model
    assert stage is not None
    train, heldout = project.pairs
    display.stage(
        "reward_model", f"{len(train)} pairs from {stage.data!r}, {len(heldout)} held out"
    )
    if stage.initial == "policy":
        trunk = policy
    else:
        trunk = loading.load_language_model(stage.initial, project.tokenizer, dtype=project.dtype)
    model = loading.scalar_model_from(trunk, head="normal", seed=project.recipe.seed)
    model.to(project.runtime.device)
    train_reward_model(
        model,
        train,
        max_tokens=stage.max_tokens,
        center=stage.center,
        settings=_settings(project, stage),
        progress=display.step,
    )
    found = pair_accuracy(model, heldout, max_tokens=stage.max_tokens, budget=_EVALUATION_TOKENS)
    _save(model, project, "reward_model")
    files.metrics({"stage": "reward_model", "reward_model/accuracy": found})
    display.say(f"reward_model: held-out pairs ordered rightly {found:.1%}")
    return found


def _save(model: Any, project: Project, stage: str) -> None:
    model.save_pretrained(project.directory / stage)
    project.tokenizer.save_pretrained(project.directory / stage)


def _settings(project: Project, stage: FineTuning) -> FineTuningSettings:
    return FineTuningSettings(
        epochs=stage.epochs,
        batch_size=stage.batch_size,
        learning_rate=stage.learning_rate,
        warmup_share=stage.warmup_share,
        weight_decay=stage.weight_decay,
        seed=project.recipe.seed,
        cpu=project.runtime.device.type == "cpu",
    )
