"""Samplers that each break one promise, and the one that they were made of."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from rlframe.api import SampledPolicy, SampleRequest, Samples, SamplingParams, StopReason
from rlframe.models.policy import Policy
from rlframe.rollout.builtin import Builtin
from tests.testing.expected import GLOBAL, MEANING, PARTITION, REFUSED, Planted, Refused, Unseen


class Decodes(Builtin):
    """Right: the sampler in the box."""


class SaysNothing(Decodes):
    @classmethod
    def capabilities(cls, config: Any) -> Any:
        return None


class Changes(Decodes):
    """Samples, and returns something else."""

    def sample(self, requests: Any, params: SamplingParams, seed: int) -> Any:
        return self.changed(super().sample(requests, params, seed), params)

    def changed(self, found: Samples, params: SamplingParams) -> Any:
        raise NotImplementedError


class OnlyTokens(Changes):
    def changed(self, found: Samples, params: SamplingParams) -> Any:
        return found.ids


class OneTooFew(Changes):
    def changed(self, found: Samples, params: SamplingParams) -> Any:
        return replace(found, ids=found.ids[:-1])


class PadsBehindTheEnd(Changes):
    def changed(self, found: Samples, params: SamplingParams) -> Any:
        most = max(map(len, found.ids))
        return replace(found, ids=[[*ids, *[0] * (most - len(ids))] for ids in found.ids])


class AlwaysAtTheLimit(Changes):
    def changed(self, found: Samples, params: SamplingParams) -> Any:
        return replace(found, stop_reasons=[StopReason.LENGTH] * len(found.ids))


class AnyId(Changes):
    def changed(self, found: Samples, params: SamplingParams) -> Any:
        return replace(found, ids=[[100_000, *ids[1:]] for ids in found.ids])


class OtherOrder(Changes):
    """As a server that returns what is finished first."""

    def changed(self, found: Samples, params: SamplingParams) -> Any:
        turned = {name: getattr(found, name) for name in ("ids", "stop_reasons", "logprobs")}
        return replace(found, **{name: x and x[::-1] for name, x in turned.items()})


class OfAnotherTemperature(Changes):
    def changed(self, found: Samples, params: SamplingParams) -> Any:
        rows = found.logprobs
        return replace(found, logprobs=rows and [[x * 0.8 for x in row] for row in rows])


class AlwaysTheFirstVersion(Changes):
    def changed(self, found: Samples, params: SamplingParams) -> Any:
        return replace(found, weight_version=0)


class Undone:
    """A policy whose logits have lost the temperature."""

    def __init__(self, policy: Any, temperature: float) -> None:
        self._policy, self._temperature = policy, temperature

    def __getattr__(self, name: str) -> Any:
        return getattr(self._policy, name)

    def next_logits(self, *given: Any) -> Any:
        return self._policy.next_logits(*given) * self._temperature


class ForgetsTheTemperature(Decodes):
    def sample(self, requests: Any, params: SamplingParams, seed: int) -> Samples:
        kept, self.policy = self.policy, Undone(self.policy, params.temperature)
        try:
            return super().sample(requests, params, seed)
        finally:
            self.policy = kept


class Without(Decodes):
    """Leaves something out of what it is asked."""

    left_out: dict[str, Any]

    def sample(self, requests: Any, params: SamplingParams, seed: int) -> Samples:
        return super().sample(requests, replace(params, **self.left_out), seed)


class ForgetsTopP(Without):
    left_out = {"top_p": None}  # noqa: RUF012


class ForgetsStopStrings(Without):
    left_out = {"stop_strings": ()}  # noqa: RUF012


class OneRandomState(Decodes):
    def sample(self, requests: Any, params: SamplingParams, seed: int) -> Samples:
        own = [SampleRequest(r.prompt_ids, seed + n) for n, r in enumerate(requests)]
        return super().sample(own, params, seed)


class SeedsByTheBatch(Decodes):
    def sample(self, requests: Any, params: SamplingParams, seed: int) -> Samples:
        own = [SampleRequest(r.prompt_ids, r.seed + (params.batch or 0)) for r in requests]
        return super().sample(own, params, seed)


class KeepsOldWeights(Decodes):
    def connect(self, policy: SampledPolicy) -> None:
        theirs: Any = policy
        own = Policy(copy.deepcopy(theirs.model), temperature=theirs.temperature, chunk=8)
        own.profile, own.vocabulary = theirs.profile, theirs.vocabulary
        super().connect(own)


class SeedsEverything(Decodes):
    def sample(self, requests: Any, params: SamplingParams, seed: int) -> Samples:
        torch.manual_seed(seed)
        return super().sample(requests, params, seed)


class HasNothingToClose(Decodes):
    def close(self) -> None:
        self.server.close()  # type: ignore[attr-defined]


class SavesAGenerator(Decodes):
    def state_dict(self) -> dict[str, Any]:
        return {"random": torch.Generator().get_state()}


class ProvesNothing(Decodes):
    """As a server that says nothing of its weights."""

    @classmethod
    def capabilities(cls, config: Any) -> Any:
        return replace(super().capabilities(config), shares_weights=False, exact=False)


class ExactWithOtherWeights(Decodes):
    @classmethod
    def capabilities(cls, config: Any) -> Any:
        return replace(super().capabilities(config), shares_weights=False)


class ProvesTooLittle(Decodes):
    def push(self, version: int, probe: Sequence[Sequence[int]]) -> Any:
        super().push(version, probe)
        return [[0.0] for _ in probe]


RIGHT = (Decodes,)

PLANTED = [
    Planted(SaysNothing, "declares_what_it_can", REFUSED),
    Planted(ExactWithOtherWeights, "declares_what_it_can", REFUSED),
    Planted(ProvesNothing, "one_response_per_request", REFUSED),
    Planted(OnlyTokens, "one_response_per_request", REFUSED),
    Planted(OneTooFew, "one_response_per_request", REFUSED),
    Planted(PadsBehindTheEnd, "one_response_per_request", REFUSED),
    Planted(AlwaysAtTheLimit, "one_response_per_request", REFUSED),
    Planted(AnyId, "one_response_per_request", REFUSED),
    Planted(OtherOrder, "draws_from_the_policy", Unseen.UNIFORM),
    Planted(ForgetsTheTemperature, "draws_from_the_policy", Unseen.UNIFORM),
    Planted(
        OfAnotherTemperature, "logprobs_are_those_declared", Refused(says="a plain forward pass")
    ),
    Planted(ForgetsTopP, "filters_are_applied", MEANING),
    Planted(ForgetsStopStrings, "stops_at_stop_strings", MEANING),
    Planted(OneRandomState, "equal_seeds_equal_responses", PARTITION),
    Planted(SeedsByTheBatch, "smaller_batches_change_nothing", PARTITION),
    Planted(KeepsOldWeights, "samples_from_the_weights_that_were_pushed", MEANING),
    Planted(AlwaysTheFirstVersion, "samples_from_the_weights_that_were_pushed", REFUSED),
    Planted(SeedsEverything, "nothing_else_is_changed", GLOBAL),
    Planted(HasNothingToClose, "can_be_closed", REFUSED),
    Planted(SavesAGenerator, "state_can_be_kept", REFUSED),
    Planted(ProvesTooLittle, "one_response_per_request", REFUSED),
]
