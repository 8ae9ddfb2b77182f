"""Everything that can be looked at before anything trains, and all that is wrong with it at once."""

from __future__ import annotations

from rlframe.builtin.reward_model import RewardModelConfig
from rlframe.compose.places import at
from rlframe.compose.preflight import columns_of
from rlframe.compose.project import Project
from rlframe.compose.remarks import remarks
from rlframe.compose.reward_format import check_read_as_trained
from rlframe.errors import PluginError, Problems, RecipeError
from rlframe.recipe import Chosen
from rlframe.registry.owners import component_errors, offered
from rlframe.stage_table import running


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
    for stage in project.stages.values():
        with problems.collected():
            stage.check()
    with problems.collected():
        _check_processes(project)
    problems.tell()
    for path, chosen in project.loaded.chosen.items():
        with problems.collected(), at(".".join(map(str, path))):
            _check_columns(project, chosen)
            _check_component(project, chosen)
            if isinstance(chosen.config, RewardModelConfig):
                check_read_as_trained(project, chosen.config)
    problems.tell()
    project.notes += remarks(project)


def _check_component(project: Project, chosen: Chosen) -> None:
    who = offered(chosen.offer)
    with component_errors(who, chosen.component, "check", raises=PluginError):
        chosen.component.check(chosen.config, project.context)


def placed(project: Project, message: str) -> str:
    """A message that begins with a path of the recipe, with the place where that was written."""
    path = tuple(message.partition(": ")[0].split("."))
    known = path[0] in type(project.recipe).model_fields
    place = project.loaded.document.place(path) if known else "recipe"
    return message if place == "recipe" else f"{place}: {message}"


def _check_processes(project: Project) -> None:
    """Every process has prompts to answer, and as much of a batch as the others."""
    ranks, prompts = project.runtime.world_size, project.recipe.rollout.prompts_per_update
    if project.recipe.ppo is not None and prompts < ranks:
        raise RecipeError(
            f"rollout.prompts_per_update: {prompts} prompts are too few for {ranks} processes"
        )
    for stage in running(project.recipe):
        size = getattr(getattr(project.recipe, stage.name), "batch_size", 0)
        if size % ranks:
            raise RecipeError(
                f"{stage.name}.batch_size: {size} cannot be divided among {ranks} processes"
            )


def _check_columns(project: Project, chosen: Chosen) -> None:
    """Every prompt has the columns that a component reads."""
    if project.recipe.prompts is not None:
        project.datasets.require_columns(columns_of(chosen), project.recipe.prompts.data)
