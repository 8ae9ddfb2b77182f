"""What parts of a recipe that are each valid cannot be together, or would do for nothing."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, Literal, Protocol, cast

from rlframe.api.algorithm import AdvantageEstimator
from rlframe.api.answers import ContractError
from rlframe.api.component import Component, KLController, PluginConfig, RewardProvider
from rlframe.api.contract import out_of_bounds
from rlframe.api.sampling import FILTERS, Sampler, SamplerCapabilities, checked_capabilities
from rlframe.errors import PluginError, did_you_mean, listed
from rlframe.recipe.document import Path_
from rlframe.recipe.references import initials
from rlframe.recipe.schema import NewModel, Recipe, RolloutSection
from rlframe.registry.owners import component_errors, in_words
from rlframe.stage_table import running

ROUTER = ("output_router_logits", "router_aux_loss_coef", "router_z_loss_coef")
"""Keys of transformers configs for a loss that only its own models add."""

DROPOUT = re.compile(
    r"(?<!classifier_)(?<!first_)(?<!last_)(dropout(_prob|_rate)?|pdrop|layerdrop|jitter_noise)$"
)
"""Keys for what is drawn at random while a model is in training mode."""

_TAKEN = ("policy", "value", "kl")
"""What PPO's own losses are called in the metrics."""


class Named(Protocol):
    """A component that the recipe names, with its config."""

    @property
    def component(self) -> type[Component[Any]]: ...
    @property
    def config(self) -> PluginConfig: ...


def conflicts(recipe: Recipe, chosen: Mapping[Path_, Named]) -> list[tuple[Path_, str]]:
    """(path, message) of each conflict.

    Args:
      recipe: valid.
      chosen: the component at each path; without those that are missing or invalid.
    """
    found = [*_architecture(recipe)]
    if recipe.ppo is not None:
        found += [*_rewards(recipe, chosen), *_losses(recipe), *_kl(recipe, chosen)]
        found += [*_critic(recipe, chosen), *_sampler(recipe, chosen), *_unread(recipe)]
    return found


def has_critic(chosen: Mapping[Path_, Named]) -> bool | None:
    """Whether the advantage estimator has a critic; None where it is missing or does not say."""
    found = chosen.get(("algorithm", "advantages"))
    if found is None or not issubclass(found.component, AdvantageEstimator):
        return None
    try:
        return bool(found.component.needs(found.config).critic)
    except (Exception, SystemExit):
        return None  # reported as a mistake of the plugin, where all needs are asked


def _sampler(recipe: Recipe, chosen: Mapping[Path_, Named]) -> Iterator[tuple[Path_, str]]:
    """What the recipe asks of its sampler that the sampler cannot do."""
    found = chosen.get(("rollout", "sampler"))
    if found is None or not issubclass(found.component, Sampler):
        return
    section, able = recipe.rollout, _capabilities(found)
    cannot, other = f"sampler {section.sampler.type!r} cannot", "rollout.sampler.type=builtin"
    for key in FILTERS:
        if getattr(section, key) is not None and key not in able.filters:
            yield ("rollout", key), f"{cannot} apply {key}. Remove it, or use {other}"
    if section.stop_strings and not able.stop_strings:
        problem = f"{cannot} end responses at stop strings. Remove them, or use {other}"
        yield ("rollout", "stop_strings"), problem
    if section.generation_batch is not None and not able.smaller_batches:
        problem = f"nothing reads this: {cannot} sample fewer responses at a time. Remove it"
        yield ("rollout", "generation_batch"), problem
    if section.reproducible and not able.per_sample_seeds:
        yield (
            ("rollout", "sampler"),
            f"{cannot} promise equal responses for equal seeds: they depend on each other and on the "
            f"number of processes. Write rollout.reproducible=false to accept that, or use {other}",
        )
    if able.logprobs == "none":
        for path, one in chosen.items():
            if path[0] == "rewards" and _needs_logprobs(one):
                problem = f"it needs the log-probabilities of sampled tokens, which {cannot} return"
                yield path, f"{problem}. Use {other}"
    if recipe.algorithm.importance_correction != "none" and not _says_what_it_drew(section, able):
        yield (
            ("algorithm", "importance_correction"),
            f"{cannot} return log-probabilities of what it samples from, which this needs. Write none, "
            f"or use {other}",
        )


def _capabilities(found: Named) -> SamplerCapabilities:
    """What a sampler declares.

    Raises:
      PluginError: it raised, or declared what there is not.
    """
    who = f"rollout.sampler: {in_words(found.component)}"
    with component_errors(who, found.component, "capabilities", raises=PluginError):
        answer = cast(type[Sampler[Any]], found.component).capabilities(found.config)
    try:
        return checked_capabilities(answer)
    except ContractError as error:
        raise PluginError(f"{who} {error}") from error


def _says_what_it_drew(section: RolloutSection, able: SamplerCapabilities) -> bool:
    filters = any(getattr(section, key) is not None for key in FILTERS)
    return able.logprobs == "filtered" or (able.logprobs == "policy" and not filters)


def _needs_logprobs(named: Named) -> bool:
    try:
        return bool(named.component.needs(named.config).logprobs)
    except (Exception, SystemExit):
        return False  # reported as a mistake of the plugin, where all needs are asked


def _unread(recipe: Recipe) -> Iterator[tuple[Path_, str]]:
    if (
        recipe.algorithm.importance_correction == "none"
        and recipe.algorithm.importance_limit is not None
    ):
        yield (
            ("algorithm", "importance_limit"),
            "nothing reads this without `importance_correction: truncate` or `mask`",
        )


def _critic(recipe: Recipe, chosen: Mapping[Path_, Named]) -> Iterator[tuple[Path_, str]]:
    """What is said of a critic where there is none, and the other way round."""
    wanted, estimator = has_critic(chosen), recipe.algorithm.advantages.type
    for section, key in ((recipe.model, "critic"), (recipe.algorithm, "value_loss")):
        path = ("model" if key == "critic" else "algorithm", key)
        given = getattr(section, key) is not None
        if wanted is True and not given:
            yield (
                path,
                f"the advantage estimator {estimator!r} needs a critic, so this cannot be null. Remove "
                "the line, or choose an estimator without a critic, such as rloo",
            )
        elif wanted is False and given and key in section.model_fields_set:
            yield (
                path,
                f"nothing reads this: the advantage estimator {estimator!r} has no critic. Remove it, "
                "or choose another estimator in `algorithm.advantages`, such as gae",
            )


def _architecture(recipe: Recipe) -> Iterator[tuple[Path_, str]]:
    """Keys of a new model's config that only transformers' own losses and training read."""
    policy = recipe.model.policy
    if not isinstance(policy, NewModel):
        return
    supervised = "policy" in initials(recipe).values() or any(
        stage.result == "policy" for stage in running(recipe)
    )
    for key, value in policy.architecture.items():
        path: Path_ = ("model", "policy", "architecture", key)
        if key in ROUTER and value:
            yield (
                path,
                "nothing reads this: rlframe computes its own losses from the logits, and that of "
                "the router is not among them. Leave it out",
            )
        elif DROPOUT.search(key) and value and not supervised:
            yield (
                path,
                "nothing reads this: dropout acts in the supervised stages alone, and no such "
                "stage trains the policy. PPO computes without it, or the ratio of new to old "
                "policy would be random",
            )


def _rewards(recipe: Recipe, chosen: Mapping[Path_, Named]) -> Iterator[tuple[Path_, str]]:
    if recipe.rewards and all(entry.weight == 0 for entry in recipe.rewards.values()):
        yield (
            ("rewards",),
            "every reward has a weight of 0, which makes it a metric alone: there would be nothing "
            "to learn but to stay near the reference. Give one of them a weight",
        )
    for name, entry in recipe.rewards.items():
        for key in ("transforms", "gates", "on_none") if entry.weight == 0 else ():
            if getattr(entry, key) and key in entry.model_fields_set:
                yield (
                    ("rewards", name, key),
                    "nothing reads this with a weight of 0, which makes the reward a metric alone",
                )
        found = chosen.get(("rewards", name))
        if (
            "on_none" in entry.model_fields_set
            and found is not None
            and _says(found, "invalidates")
        ):
            yield (
                ("rewards", name, "on_none"),
                "nothing reads this: with these keys the reward always leaves out the responses for "
                "which it returns None. Remove it",
            )
    yield from _gates(recipe, chosen)


def _gates(recipe: Recipe, chosen: Mapping[Path_, Named]) -> Iterator[tuple[Path_, str]]:
    """Gates that act on nothing, or that nothing asks."""
    gates = {
        path for path, one in chosen.items() if path[0] == "rewards" and _says(one, "has_gate")
    }
    for path in gates:
        if len(path) > 2:
            yield (
                path,
                f"a reward inside of rewards.{path[1]} has no gate: its score alone is read. Name it "
                "as a reward of its own",
            )
    for name, entry in recipe.rewards.items():
        if entry.gates is None or ("rewards", name) not in chosen:
            continue
        if ("rewards", name) not in gates:
            yield (
                ("rewards", name, "gates"),
                "nothing reads this: with these keys the reward has no gate, as eos_penalty with "
                "`mode: replace` has one. Remove it",
            )
        for number, other in enumerate(entry.gates):
            if other not in recipe.rewards:
                known = [n for n in recipe.rewards if n != name]
                problem = f"there is no reward {other!r}.{did_you_mean(other, known)}"
                yield ("rewards", name, "gates", number), f"{problem} Known: {listed(known)}"
            elif other == name:
                yield ("rewards", name, "gates", number), "a reward cannot gate itself"


def _says(named: Named, what: Literal["has_gate", "invalidates"]) -> bool:
    """What a reward's class says of its config."""
    component = named.component
    if not issubclass(component, RewardProvider):
        return False
    try:
        return bool(getattr(component, what)(named.config))
    except Exception:  # reported with its owner when the run is put together
        return False


def _losses(recipe: Recipe) -> Iterator[tuple[Path_, str]]:
    for name in recipe.losses:
        if name in _TAKEN:
            yield (
                ("losses", name),
                f"this name is taken: the metric loss/{name}_avg is that of a loss of PPO's own. "
                f"Call the loss by another name, such as {name}_2",
            )


def _kl(recipe: Recipe, chosen: Mapping[Path_, Named]) -> Iterator[tuple[Path_, str]]:
    found = chosen.get(("kl", "controller"))
    if recipe.kl is None or found is None or not issubclass(found.component, KLController):
        return
    who = f"kl.controller: {in_words(found.component)}"
    with component_errors(who, found.component, "initial_coefficient", raises=PluginError):
        start = found.component.initial_coefficient(found.config)
    beyond = None if start is None else out_of_bounds(start, recipe.kl.minimum, recipe.kl.maximum)
    if beyond is not None:
        yield ("kl", "controller"), f"the KL controller {beyond}"
