"""Everything that can be looked at before anything trains, and all that is wrong with it at once."""

from __future__ import annotations

from typing import Any

from rlframe.builtin.reward_model import RewardModelConfig
from rlframe.compose.places import at
from rlframe.compose.preflight import columns_of
from rlframe.compose.project import Project
from rlframe.compose.remarks import remarks
from rlframe.compose.reward_format import check_read_as_trained
from rlframe.data.examples import Prepared
from rlframe.errors import PluginError, Problems, RecipeError
from rlframe.recipe import Chosen
from rlframe.registry.owners import component_errors, offered


def check(project: Project) -> None:
    """Look at models, data and components before the first stage; remarks go to `project.notes`.

    Raises:
      RecipeError: a line for each mistake, with the recipe's path and the place where it was written.
    """
    problems = Problems(lambda message: placed(project, message))
    with problems.collected():
        _ = project.tokenizer, project.context_tokens
    project.notes += project.models.check(problems)
    for name in project.recipe.data:
        with problems.collected():
            project.split(name)
    problems.tell()  # without tokenizer and data nothing below can be looked at
    for part in (_check_sft, _check_pairs, _check_prompts, _check_processes):
        with problems.collected():
            part(project)
    problems.tell()
    for path, chosen in project.loaded.chosen.items():
        with problems.collected(), at(".".join(map(str, path))):
            _check_columns(project, chosen)
            _check_component(project, chosen)
            if isinstance(chosen.config, RewardModelConfig):
                check_read_as_trained(project, chosen.config)
    problems.tell()
    project.notes += [*_truncation(project), *remarks(project)]


def _check_component(project: Project, chosen: Chosen) -> None:
    who = offered(chosen.offer)
    with component_errors(who, chosen.component, "check", raises=PluginError):
        chosen.component.check(chosen.config, project.context)


def _truncation(project: Project) -> list[str]:
    """What filters of the sampler mean for the figures of a run."""
    section = project.recipe.rollout
    filters = {"top_k": section.top_k, "top_p": section.top_p, "min_p": section.min_p}
    given = " and ".join(f"rollout.{key}" for key, value in filters.items() if value is not None)
    if project.recipe.ppo is None or not given:
        return []
    return [
        f"{given}: responses are drawn from a truncated distribution, while log-probabilities, KL and "
        "the ratios that are learned from are those of the whole policy; sampler/kl_to_policy is how "
        "far apart the two are"
    ]


def placed(project: Project, message: str) -> str:
    """A message that begins with a path of the recipe, with the place where that was written."""
    path = tuple(message.partition(": ")[0].split("."))
    known = path[0] in type(project.recipe).model_fields
    place = project.loaded.document.place(path) if known else "recipe"
    return message if place == "recipe" else f"{place}: {message}"


def _check_sft(project: Project) -> None:
    if project.recipe.sft is not None:
        _check_split(project, "sft", project.sft_examples)


def _check_pairs(project: Project) -> None:
    if project.recipe.reward_model is not None:
        _check_split(project, "reward_model", project.pairs)


def _check_prompts(project: Project) -> None:
    if project.recipe.ppo is not None:
        _ = project.prompts
    _ = project.context


def _check_split(project: Project, stage: str, found: Prepared[Any]) -> None:
    parts = {"to train on": found.train, "held out to measure it": found.heldout}
    with at(f"{stage}.data"):
        counts = {name: len(part) for name, part in parts.items()}
        project.datasets.require_both(counts, getattr(project.recipe, stage).data)
    project.lengths.check_examples(stage, found)


def _check_processes(project: Project) -> None:
    """Every process has prompts to answer, and as much of a batch as the others."""
    ranks, prompts = project.runtime.world_size, project.recipe.rollout.prompts_per_update
    if project.recipe.ppo is not None and prompts < ranks:
        raise RecipeError(
            f"rollout.prompts_per_update: {prompts} prompts are too few for {ranks} processes"
        )
    for name in ("sft", "reward_model"):
        stage = getattr(project.recipe, name)
        if stage is not None and stage.batch_size % ranks:
            raise RecipeError(
                f"{name}.batch_size: {stage.batch_size} cannot be divided among {ranks} processes"
            )


def _check_columns(project: Project, chosen: Chosen) -> None:
    """Every prompt has the columns that a component reads."""
    if project.recipe.prompts is not None:
        project.datasets.require_columns(columns_of(chosen), project.recipe.prompts.data)
