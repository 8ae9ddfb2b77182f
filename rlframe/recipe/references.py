"""What one part of a recipe asks of another: data sets that exist, stages that run, files."""

from __future__ import annotations

from collections.abc import Iterator
from glob import glob, has_magic
from pathlib import Path

from rlframe.api.component import Needs, PluginConfig
from rlframe.api.references import Reference, references
from rlframe.errors import did_you_mean, listed
from rlframe.recipe.document import Path_
from rlframe.recipe.schema import Models, NewModel, NewTokenizer, Recipe
from rlframe.stage_table import REFERENCE, STAGES, Stage, referred, running

PPO_ONLY = {"prompts", "rollout", "rewards", "kl", "losses", "algorithm", "hooks", "evaluation"}


def broken_references(recipe: Recipe) -> list[tuple[Path_, str]]:
    """(path, message) of each reference that leads nowhere, in the order of the recipe."""
    return [*broken_lookups(recipe), *_stages(recipe), *_ppo(recipe)]


def broken_lookups(recipe: Recipe) -> list[tuple[Path_, str]]:
    """The same of names and files alone; sections may be None. Without `data` nothing is known."""
    named = [*_files(recipe), *_datasets(recipe)] if recipe.data is not None else []
    return [*named, *_settings(recipe)]


def _files(recipe: Recipe) -> Iterator[tuple[Path_, str]]:
    for name, data in recipe.data.items():
        paths = (data.path,) if isinstance(data.path, str) else data.path or ()
        for path in paths:
            if not is_there(path):
                yield ("data", name, "path"), _missing(path)


def _settings(recipe: Recipe) -> Iterator[tuple[Path_, str]]:
    file = None if recipe.runtime is None else recipe.runtime.deepspeed_config
    if file is not None and not Path(file).is_file():
        yield ("runtime", "deepspeed_config"), _missing(file)


def is_there(path: str) -> bool:
    """Whether a `path` of the recipe, which may be a pattern, means any file."""
    return Path(path).exists() or bool(glob(path, recursive=True))


def _missing(path: str) -> str:
    """That nothing is at a path, and what it may have been meant to be."""
    place, here = Path(path), f"(from {Path.cwd()})"
    if has_magic(path):
        return f"no file matches {path!r} {here}"
    if place.parent.is_dir():
        guess = did_you_mean(place.name, (p.name for p in place.parent.iterdir()))
    else:
        guess = f" There is no folder {str(place.parent)!r} either."
    if not place.suffix and path.count("/") == 1 and not place.is_absolute():
        guess += f" A data set of the hub is written `hub: {{id: {path}}}`"
    return f"there is no file {path!r} {here}{'.' if guess else ''}{guess}"


def _datasets(recipe: Recipe) -> Iterator[tuple[Path_, str]]:
    wanted: list[tuple[Path_, str]] = [
        ((section, "data") if name == part.data else (section, "data", name), name)
        for section in (*(stage.name for stage in STAGES if stage.check is not None), "prompts")
        if (part := getattr(recipe, section)) is not None
        for name in ([part.data] if isinstance(part.data, str) else part.data)
    ]
    policy = recipe.model.policy if isinstance(recipe.model, Models) else None
    if isinstance(policy, NewModel) and isinstance(policy.tokenizer, NewTokenizer):
        wanted.append((("model", "policy", "tokenizer", "data"), policy.tokenizer.data))
    for path, name in wanted:
        if name not in recipe.data:
            yield path, _no_data(name, recipe)


def _no_data(name: str, recipe: Recipe) -> str:
    guess, known = did_you_mean(name, recipe.data), listed(recipe.data)
    return f"there is no data set {name!r}.{guess} `data:` holds {known}"


def broken_names(
    recipe: Recipe, path: Path_, config: PluginConfig, needs: Needs
) -> Iterator[tuple[Path_, str]]:
    """What a component names or needs that the recipe does not have.

    Args:
      recipe: sections that are not valid are None.
      path: of the component.
      config: its keys.
      needs: what its class says of them.
    """
    for reference in references(config):
        problem = _broken(reference, recipe)
        if problem is not None:
            yield (*path, *reference.path), problem
    if recipe.rollout is not None and needs.samples_per_prompt > recipe.rollout.samples_per_prompt:
        yield (
            path,
            f"it compares the responses to one prompt: set rollout.samples_per_prompt to "
            f"{needs.samples_per_prompt} or more, it is {recipe.rollout.samples_per_prompt}",
        )


def _broken(reference: Reference, recipe: Recipe) -> str | None:
    """What is wrong with one name; None if nothing is, or its section is not known."""
    name = reference.name
    if reference.to == "data" and recipe.data is not None and name not in recipe.data:
        return _no_data(name, recipe)
    if reference.to == "reward" and recipe.rewards is not None and name not in recipe.rewards:
        guess, known = did_you_mean(name, recipe.rewards), listed(recipe.rewards)
        return f"there is no reward {name!r}.{guess} The recipe's rewards are {known}"
    if reference.to == "model" and name.startswith(REFERENCE):
        return broken_stage(name, recipe)
    return None


def broken_stage(name: str, recipe: Recipe) -> str | None:
    """Why a component cannot have what `stage:NAME` means in a recipe; None if it can."""
    stage = next((stage for stage in running(recipe) if stage.reference == name), None)
    if stage is None:
        return f"{name!r} is the result of a stage that this recipe does not run"
    if stage.result is None:
        return f"{name!r} is the last stage of a run, and nothing comes after it to read its result"
    return None


def _stages(recipe: Recipe) -> Iterator[tuple[Path_, str]]:
    runs = {stage.reference for stage in running(recipe)}
    if not runs:
        known = ", ".join(stage.name for stage in STAGES)
        yield (), f"nothing to run: give at least one of {known}"
    policies, scorers = (
        [stage for stage in STAGES if stage.result == result] for result in ("policy", "scorer")
    )
    critic = getattr(recipe.model.critic, "initial", None)
    places: list[tuple[Path_, str | None, list[Stage]]] = [
        (("model", "reference"), recipe.model.reference, policies),
        (("model", "critic", "initial"), critic, scorers),
        *(((*path,), name, []) for path, name in initials(recipe).items()),
    ]
    for path, name, fitting in places:
        if name is None or not name.startswith(REFERENCE):
            continue
        if referred(name) is not None and referred(name) not in fitting:
            makers = " or ".join(stage.name for stage in policies)
            use = " or ".join(repr(stage.reference) for stage in fitting)
            use = use or f"'policy', which is what {makers} leaves"
            yield path, f"{name!r} cannot stand here; use {use}, or a path or hub id"
        elif name not in runs:
            section = name.removeprefix(REFERENCE)
            yield path, f"{name!r} is the result of a stage, but `{section}:` is not in this recipe"


def initials(recipe: Recipe) -> dict[Path_, str]:
    """Recipe path -> name of the model that each stage starts from which trains another model than the
    policy: `policy`, a path or hub id.
    """
    return {
        (stage.name, "initial"): getattr(recipe, stage.name).initial
        for stage in running(recipe)
        if stage.result == "scorer"
    }


def _ppo(recipe: Recipe) -> Iterator[tuple[Path_, str]]:
    if recipe.ppo is None:
        for section in sorted(PPO_ONLY & recipe.model_fields_set):
            if getattr(recipe, section):
                yield (section,), "only PPO reads this, and the recipe has no `ppo:`"
        if recipe.model.lora is not None:
            yield ("model", "lora"), "only PPO trains adapters, and the recipe has no `ppo:`"
        return
    for section in ("prompts", "kl", "rewards"):
        if not getattr(recipe, section):
            yield ("ppo",), f"PPO needs `{section}:`, which this recipe lacks"
    responses = recipe.rollout.prompts_per_update * recipe.rollout.samples_per_prompt
    if responses < recipe.ppo.minibatches:
        yield (
            ("ppo", "minibatches"),
            f"{recipe.ppo.minibatches} minibatches cannot be made of {responses} responses "
            "(rollout.prompts_per_update * rollout.samples_per_prompt)",
        )
    critic = recipe.model.critic
    if critic is None:
        return
    if critic.shared and critic.initial != "policy":
        yield ("model", "critic", "initial"), "a shared critic is the policy's own trunk"
    if critic.head == "keep" and critic.initial == "policy":
        yield (
            ("model", "critic", "head"),
            "the policy has no value head to keep; use zero or normal",
        )
