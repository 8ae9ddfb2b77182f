"""Responses of a policy as a run samples them, without a run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import torch

from rlframe.api.component import Context, Instance, PluginConfig
from rlframe.api.sampling import Sampler, SamplingParams
from rlframe.engine.sampling import Request, ResponseSampler
from rlframe.models.policy import Policy
from rlframe.registry.relay import Relay
from rlframe.rollout.builtin import Builtin
from rlframe.types import Prompt, Rollout

CPU = torch.device("cpu")


def response_sampler(
    policy: Policy,
    tokenizer: Any,
    *,
    eos_ids: set[int],
    seed: int = 0,
    sampler: Sampler[Any] | None = None,
    probe: Sequence[Sequence[int]] = (),
    **params: Any,
) -> ResponseSampler:
    """The sampler in the box, or another one, as the engine uses it."""
    context = cast(Context, SimpleNamespace(device=CPU, tokenizer=tokenizer, seed=seed))
    asked = SamplingParams(eos_ids=frozenset(eos_ids), temperature=policy.temperature, **params)
    return ResponseSampler(
        Instance("sampler", "of a test", sampler or Builtin(PluginConfig(), context)),
        Relay(),
        policy,
        params=replace(asked, logprobs=asked.logprobs or asked.truncated),
        context=context,
        probe=probe,
    )


def sampled(
    policy: Policy, tokenizer: Any, prompts: Sequence[Sequence[int]], **how: Any
) -> Rollout:
    """A response to each prompt; see `response_sampler`."""
    requests = [Request(Prompt("", tuple(p)), n, n) for n, p in enumerate(prompts)]
    sampler = response_sampler(policy, tokenizer, **how)
    return sampler.sample(requests, update=0, purpose="rollout", version=0)
