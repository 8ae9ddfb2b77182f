"""The samplers of a recipe: of the policy in training, and of the reference."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from rlframe.api.component import Instance, PluginConfig
from rlframe.api.sampling import Sampler, SamplingParams
from rlframe.compose.project import Project
from rlframe.engine.generation import ends_of
from rlframe.engine.sampling import ResponseSampler
from rlframe.models.policy import Policy
from rlframe.recipe import LoadedRecipe
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


def needs_logprobs(loaded: LoadedRecipe) -> bool:
    """Whether a reward, nested ones included, asks for the sampler's log-probabilities."""
    return any(
        path[0] == "rewards" and chosen.component.needs(chosen.config).logprobs
        for path, chosen in loaded.chosen.items()
    )


def _connected(
    project: Project, instance: Instance[Sampler[Any]], policy: Policy, relay: Relay
) -> ResponseSampler:
    section, tokenizer = project.recipe.rollout, project.tokenizer
    params = SamplingParams(
        max_new_tokens=section.max_new_tokens,
        eos_ids=frozenset(ends_of(policy.model, tokenizer)),
        temperature=section.temperature,
        top_k=section.top_k,
        top_p=section.top_p,
        min_p=section.min_p,
        stop_strings=section.stop_strings,
        batch=section.generation_batch,
    )
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
        params=replace(params, logprobs=wanted),
        tokenizer=tokenizer,
        seed=project.recipe.seed,
        device=project.runtime.device,
        probe=[p.ids[:_PROBE_TOKENS] for p in prompts if len(p.ids) > 1][:_PROBE_TEXTS],
    )
