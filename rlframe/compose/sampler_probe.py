"""Does the recipe's sampler draw from the distribution that is trained, in this architecture?

The sampler in the box is played step by step in `probe.py`. Another one that samples with the policy's
own weights is asked for a few responses, which a plain forward pass then reads: the continuous batching
of transformers 5.23 samples BLOOM and the first GPT without an error, and 2.4 nats away. One with
weights of its own is compared after each push.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from rlframe.api.answers import ContractError
from rlframe.api.sampling import SampleRequest, SamplingParams
from rlframe.compose.probe import (
    OWN_TOLERANCE,
    TOLERANCE,
    in_silence,
    plain_logprobs,
    texts_for,
)
from rlframe.compose.project import Project
from rlframe.compose.sampling import sampler_capabilities
from rlframe.engine.sampling import ResponseSampler
from rlframe.errors import PluginError, RecipeError, RunError
from rlframe.models.policy import Policy
from rlframe.models.reduced import reduced_model
from rlframe.registry.relay import Relay
from rlframe.rollout.builtin import Builtin


def check_sampler_of_architecture(project: Project) -> None:
    """Ask the sampler about a small model of the policy's architecture, before any stage trains.

    Raises:
      RecipeError: it draws from another distribution.
      PluginError: it raised, or broke its contract.
    """
    if not _has_to_be_asked(project):
        return
    with torch.random.fork_rng(devices=[]), in_silence():
        torch.default_generator.manual_seed(0)
        model, _ = reduced_model(
            project.lengths.config("model.policy"), length=project.lengths.longest_text
        )
        if model is not None:
            policy = Policy(
                model.to(project.runtime.device),
                temperature=project.recipe.rollout.temperature,
                chunk=64,
                profile=project.profiles.of("model.policy", model),
            )
            _compare(project, policy, TOLERANCE)


def check_sampler(project: Project, policy: Policy) -> None:
    """The same of the policy as PPO starts.

    Raises:
      RlframeError: as of `check_sampler_of_architecture`.
    """
    if _has_to_be_asked(project):
        _compare(project, policy, OWN_TOLERANCE)


def _has_to_be_asked(project: Project) -> bool:
    if project.recipe.ppo is None:
        return False
    component = project.loaded.chosen["rollout", "sampler"].component
    return component is not Builtin and sampler_capabilities(project.loaded).shares_weights


@torch.no_grad()
def _compare(project: Project, policy: Policy, tolerance: float) -> None:
    """Let a sampler of its own write with a policy, and read what it wrote."""
    model = policy.model
    instead = (
        f"This may be the architecture ({type(model).__name__}, model_type "
        f"{model.config.model_type!r}): rollout.sampler.type=builtin samples from it"
    )
    try:
        away = _difference(project, policy)
    except RunError as error:
        if isinstance(error.__cause__, ContractError):
            raise PluginError(f"rollout.sampler: {error}") from error
        raise PluginError(f"rollout.sampler: {error}. {instead}") from error
    if away > tolerance:
        raise RecipeError(
            f"rollout.sampler: {project.recipe.rollout.sampler.type!r} samples from another "
            f"distribution than the one that is trained, with a difference of {away:.2g} nats from a "
            f"plain forward pass. {instead}"
        )


def _difference(project: Project, policy: Policy) -> float:
    """The larger of the differences that `_Asked` finds, in nats; 0 if the sampler can do neither."""
    able = sampler_capabilities(project.loaded)
    texts = texts_for(policy)
    room = max(len(t.prompt) + len(t.response) for t in texts)
    asked = _Asked(
        policy,
        [SampleRequest(tuple(t.prompt), seed) for seed, t in enumerate(texts)],
        SamplingParams(
            max_new_tokens=room - max(len(t.prompt) for t in texts),
            eos_ids=frozenset({0}),
            temperature=policy.temperature,
        ),
    )
    sampler = ResponseSampler(
        project.instance("rollout", "sampler"),
        Relay(),
        policy,
        context=project.context,
        params=asked.params,
    )
    try:
        said = asked.of_what_it_says(sampler) if able.logprobs != "none" else 0.0
        return max(said, asked.of_the_likeliest(sampler) if "top_k" in able.filters else 0.0)
    finally:
        sampler.close()


@dataclass(frozen=True)
class _Asked:
    """What a sampler is asked, and how far its answers are from the policy's, in nats."""

    policy: Policy
    requests: list[SampleRequest]
    params: SamplingParams

    def of_what_it_says(self, sampler: ResponseSampler) -> float:
        """Of the log-probabilities that it returns."""
        sampler.params = replace(self.params, logprobs=True)
        found = sampler.answer(self.requests, 0, version=0)
        return max(
            abs(float(logprobs[token]) - own)
            for request, ids, given in zip(
                self.requests, found.ids, found.logprobs or (), strict=True
            )
            for logprobs, token, own in zip(self._plain(request, ids), ids, given, strict=True)
        )

    def of_the_likeliest(self, sampler: ResponseSampler) -> float:
        """Of the tokens that it takes where it may take the likeliest only."""
        sampler.params = replace(self.params, top_k=1)
        found = sampler.answer(self.requests, 0, version=0)
        return max(
            float(logprobs.max() - logprobs[token])
            for request, ids in zip(self.requests, found.ids, strict=True)
            for logprobs, token in zip(self._plain(request, ids), ids, strict=True)
        )

    def _plain(self, request: SampleRequest, ids: Sequence[int]) -> Tensor:
        """[T, V] log-probabilities before each token of a response."""
        start = len(request.prompt_ids)
        whole = plain_logprobs(self.policy, [*request.prompt_ids, *ids])
        return (whole[start - 1 : -1] / self.policy.temperature).log_softmax(-1)
