"""Does the recipe's sampler draw from the distribution that is trained, in this architecture?

The sampler in the box is played step by step in `probe.py`. Another one that samples with the policy's
own weights is asked for a few responses, which a plain forward pass then reads: the continuous batching
of transformers 5.23 samples BLOOM and the first GPT without an error, and 2.4 nats away. One with
weights of its own is compared after each push.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from rlframe.api.sampling import Sampler, SampleRequest, SamplingParams
from rlframe.compose.probe import (
    OWN_TOLERANCE,
    TOLERANCE,
    Text,
    in_silence,
    plain_logprobs,
    texts_for,
)
from rlframe.compose.project import Project
from rlframe.compose.sampling import sampler_capabilities
from rlframe.errors import RecipeError
from rlframe.models.policy import Policy
from rlframe.models.reduced import reduced_model
from rlframe.rollout.builtin import Builtin


def check_sampler_of_architecture(project: Project) -> None:
    """Ask the sampler about a small model of the policy's architecture, before any stage trains.

    Raises:
      RecipeError: it draws from another distribution, or fails.
    """
    if not _has_to_be_asked(project):
        return
    with torch.random.fork_rng(devices=[]), in_silence():
        torch.default_generator.manual_seed(0)
        model, _ = reduced_model(
            project.lengths.config("model.policy"), length=project.lengths.longest_text
        )
        if model is not None:
            profile = project.profiles.of("model.policy", model)
            policy = Policy(model, temperature=1.0, chunk=64, profile=profile)
            _Asked(project, policy).refuse_beyond(TOLERANCE)


def check_sampler(project: Project, policy: Policy) -> None:
    """The same of the policy as PPO starts.

    Raises:
      RecipeError: the sampler draws from another distribution, or fails.
    """
    if _has_to_be_asked(project):
        plain = Policy(
            policy.model,
            temperature=1.0,
            chunk=policy.chunk,
            profile=policy.profile,
            vocabulary=policy.vocabulary,
        )
        _Asked(project, plain).refuse_beyond(OWN_TOLERANCE)


def _has_to_be_asked(project: Project) -> bool:
    if project.recipe.ppo is None:
        return False
    component = project.loaded.chosen["rollout", "sampler"].component
    return component is not Builtin and sampler_capabilities(project.loaded).shares_weights


@dataclass
class _Asked:
    """A sampler of its own, connected to a policy at temperature 1."""

    project: Project
    policy: Policy

    @torch.no_grad()
    def refuse_beyond(self, tolerance: float) -> None:
        name = self.project.recipe.rollout.sampler.type
        model = self.policy.model
        who = f"{type(model).__name__}, model_type {model.config.model_type!r}"
        try:
            away = self._difference()
        except Exception as error:  # a library may raise anything for an architecture
            said = " ".join(str(error).split())[:300]
            problem = f"{type(error).__name__}: {said}"
        else:
            if away <= tolerance:
                return
            problem = (
                f"tokens would come from another distribution than the one that is trained: {away:.2g} "
                "nats from a plain forward pass"
            )
        raise RecipeError(
            f"rollout.sampler: {name!r} cannot sample from this policy ({who}): {problem}. Use "
            "rollout.sampler.type=builtin"
        )

    def _difference(self) -> float:
        """The largest, in nats, of what the sampler says about its tokens, and of the likeliest token
        from the one that it takes as the likeliest; 0 if it can do neither.
        """
        able = sampler_capabilities(self.project.loaded)
        sampler = self.project.instance("rollout", "sampler").component
        sampler.connect(self.policy)
        sampler.push(0, ())
        try:
            away = 0.0
            if able.logprobs != "none":
                away = self._logprobs_away(sampler)
            return max(away, self._greedy_away(sampler) if "top_k" in able.filters else 0.0)
        finally:
            sampler.close()

    def _logprobs_away(self, sampler: Sampler[Any]) -> float:
        params = replace(self._params, logprobs=True)
        found = sampler.sample(self._requests, params, 0)
        return max(
            abs(float(logprobs[token]) - own)
            for request, ids, given in zip(
                self._requests, found.ids, found.logprobs or (), strict=True
            )
            for logprobs, token, own in zip(self._plain(request, ids), ids, given, strict=True)
        )

    def _greedy_away(self, sampler: Sampler[Any]) -> float:
        found = sampler.sample(self._requests, replace(self._params, top_k=1), 0)
        return max(
            float(logprobs.max() - logprobs[token])
            for request, ids in zip(self._requests, found.ids, strict=True)
            for logprobs, token in zip(self._plain(request, ids), ids, strict=True)
        )

    def _plain(self, request: SampleRequest, ids: Sequence[int]) -> Tensor:
        """[T, V] log-probabilities before each token of a response."""
        start = len(request.prompt_ids)
        return plain_logprobs(self.policy, [*request.prompt_ids, *ids])[start - 1 : -1]

    @cached_property
    def _texts(self) -> list[Text]:
        return texts_for(self.policy)

    @property
    def _requests(self) -> list[SampleRequest]:
        return [SampleRequest(tuple(t.prompt), seed) for seed, t in enumerate(self._texts)]

    @property
    def _params(self) -> SamplingParams:
        room = max(len(t.prompt) + len(t.response) for t in self._texts)
        longest = max(len(t.prompt) for t in self._texts)
        return SamplingParams(max_new_tokens=room - longest, eos_ids=frozenset({0}))
