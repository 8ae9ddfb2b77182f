"""The samplers of a recipe: of the policy in training, and of the reference."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

from transformers import PreTrainedTokenizerBase

from rlframe.api.component import Instance, PluginConfig
from rlframe.api.sampling import FILTERS, Sampler, SamplerCapabilities, SamplingParams
from rlframe.compose.project import Project
from rlframe.engine.generation import ends_of
from rlframe.engine.sampling import ResponseSampler
from rlframe.models.policy import Policy
from rlframe.recipe import LoadedRecipe
from rlframe.recipe.schema import RolloutSection
from rlframe.registry.relay import Relay
from rlframe.rollout.builtin import Builtin

_PROBE_TEXTS, _PROBE_TOKENS = 8, 64
"""Prompts, and how much of each, on which a sampler's own weights are compared with the policy's."""


def policy_sampler(project: Project, policy: Policy, relay: Relay) -> ResponseSampler:
    """What samples the policy in training, as the recipe chooses it."""
    return _connected(project, project.instance("rollout", "sampler"), policy, relay)


def reference_sampler(project: Project, policy: Policy, relay: Relay) -> ResponseSampler:
    """What samples the reference, which never changes and is in this process."""
    built = Builtin(PluginConfig(), project.context)
    return _connected(project, Instance("reference", "builtin (rlframe)", built), policy, relay)


def sampler_capabilities(loaded: LoadedRecipe) -> SamplerCapabilities:
    """What the recipe's sampler can do, as was checked when the recipe was read."""
    found = loaded.chosen["rollout", "sampler"]
    return cast(type[Sampler[Any]], found.component).capabilities(found.config)


def sampling_remark(project: Project) -> str | None:
    """What another sampler than that in the box, or filters, mean for the metrics of a run."""
    section, able = project.recipe.rollout, sampler_capabilities(project.loaded)
    given = " and ".join(f"rollout.{k}" for k in FILTERS if getattr(section, k) is not None)
    if able.exact and not given:
        return None
    what = (
        f"{given}: responses are drawn from a truncated distribution, while log-probabilities, KL and "
        "the ratios that are learned from are those of the whole policy"
        if able.exact
        else f"rollout.sampler: {section.sampler.type!r} computes other numbers than the trainer"
    )
    measured = "sampler/kl_to_policy is" if able.logprobs != "none" else "nothing measures"
    corrected = project.recipe.algorithm.importance_correction != "none"
    remedy = "" if corrected else ". Nothing corrects for it: see algorithm.importance_correction"
    return f"{what}; {measured} how far apart the two are{remedy}"


def needs_logprobs(loaded: LoadedRecipe) -> bool:
    """Whether a reward, nested ones included, asks for the sampler's log-probabilities."""
    return any(
        path[0] == "rewards" and chosen.component.needs(chosen.config).logprobs
        for path, chosen in loaded.chosen.items()
    )


def sampling_params(
    section: RolloutSection, policy: Policy, tokenizer: PreTrainedTokenizerBase
) -> SamplingParams:
    """How responses are sampled.

    Args:
      section: of the recipe.
      policy: its generation config lists ends beside those of the tokenizer.
      tokenizer: of the policy.
    """
    return SamplingParams(
        max_new_tokens=section.max_new_tokens,
        eos_ids=frozenset(ends_of(policy.model, tokenizer)),
        temperature=section.temperature,
        top_k=section.top_k,
        top_p=section.top_p,
        min_p=section.min_p,
        stop_strings=section.stop_strings,
        batch=section.generation_batch,
    )


def _connected(
    project: Project, instance: Instance[Sampler[Any]], policy: Policy, relay: Relay
) -> ResponseSampler:
    params = sampling_params(project.recipe.rollout, policy, project.tokenizer)
    able = instance.component.capabilities(instance.component.config)
    read = project.recipe.algorithm.importance_correction != "none" or needs_logprobs(
        project.loaded
    )
    # What an exact sampler draws from is the policy itself, unless filters truncate it.
    wanted = able.logprobs != "none" and (params.truncated or not able.exact or read)
    prompts, _ = project.prompts
    return ResponseSampler(
        instance,
        relay,
        policy,
        context=project.context,
        params=replace(params, logprobs=wanted),
        probe=[p.ids[:_PROBE_TOKENS] for p in prompts if len(p.ids) > 1][:_PROBE_TEXTS],
    )
