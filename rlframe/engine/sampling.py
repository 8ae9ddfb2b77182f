"""One rank's sampler: what it is asked, what is refused of its answers, and which weights it has."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from rlframe.api.answers import ContractError
from rlframe.api.component import Context, Instance
from rlframe.api.sampling import (
    Sampler,
    SampleRequest,
    Samples,
    SamplingParams,
    checked_proof,
    checked_samples,
)
from rlframe.distributed.runtime import out_of_memory
from rlframe.engine.updater import MemoryWarning
from rlframe.errors import RunError
from rlframe.models.policy import Policy
from rlframe.registry.relay import Relay
from rlframe.rollout.packing import pack, response_text
from rlframe.rollout.seeds import seed_of
from rlframe.types import Prompt, Rollout

PROBE_LIMIT = 0.1
"""Mean nats per token by which a sampler's own weights may differ from the trainer's on the probe. On
the policy that recipes/quickstart.yaml trains, weights in bfloat16 differ by 0.008, and weights of
which one layer is a new one by 0.46 to 5.6."""

_NO_MEMORY = object()


@dataclass(frozen=True)
class Request:
    """A prompt to respond to, and which response of the global batch that will be."""

    prompt: Prompt
    sample: int
    group: int


class ResponseSampler:
    """Calls a sampler through its hook, on this rank.

    Args:
      instance: the component, which is connected here.
      relay: it is called through it.
      policy: whose responses are sampled.
      context: that of the component: tokenizer, device and seed.
      params: how, for all rollouts.
      probe: texts on which a sampler with weights of its own is compared with the policy.

    Raises:
      RunError: the sampler refuses the policy.
    """

    def __init__(
        self,
        instance: Instance[Sampler[Any]],
        relay: Relay,
        policy: Policy,
        *,
        context: Context,
        params: SamplingParams,
        probe: Sequence[Sequence[int]] = (),
    ) -> None:
        self._instance = instance
        self._relay = relay
        self._policy = policy
        self._context = context
        self._probe = probe
        self._version: int | None = None
        self._no_memory = ""
        self._missing = frozenset(policy.without_token())
        self.capabilities = instance.component.capabilities(instance.component.config)
        """What the sampler can do."""
        self.params = params
        """How responses are sampled; fewer at a time once memory has run out."""
        with relay.named("sampler", instance, "connect"):
            instance.component.connect(policy)

    @property
    def component(self) -> Sampler[Any]:
        """What samples."""
        return self._instance.component

    def sample(
        self, requests: Sequence[Request], *, update: int, purpose: str, version: int
    ) -> Rollout:
        """One response to each request.

        Args:
          requests: at least one.
          update: number of the PPO update; part of the seeds.
          purpose: keeps apart what is drawn for training, for evaluations and of the reference.
          version: updates that made the policy's weights.

        Raises:
          RunError: the sampler raised, broke its contract, or has other weights; or memory ran out.
        """
        key = (self._context.seed, purpose, update)
        asked = [SampleRequest(r.prompt.ids, seed_of(*key, r.sample)) for r in requests]
        found = self.answer(asked, seed_of(*key, "from", requests[0].sample), version=version)
        ids = [list(row) for row in found.ids]
        stops = self.params.stop_strings
        return Rollout(
            sequences=pack([r.prompt.ids for r in requests], ids, device=self._context.device),
            prompts=tuple(r.prompt for r in requests),
            texts=tuple(
                response_text(self._context.tokenizer, row, stop_strings=stops) for row in ids
            ),
            stop_reasons=tuple(found.stop_reasons),
            group_ids=tuple(r.group for r in requests),
            samples=tuple(r.sample for r in requests),
            update=update,
            logprobs=None if found.logprobs is None else tuple(map(tuple, found.logprobs)),
            retried=None if self.capabilities.exact else found.retried,
        )

    @torch.no_grad()
    def answer(self, requests: Sequence[SampleRequest], seed: int, *, version: int) -> Samples:
        """What the sampler returns, checked.

        Args:
          requests: at least one.
          seed: of the call.
          version: updates that made the policy's weights.

        Raises:
          RunError: as of `sample`.
        """
        self._push(version)
        return self._sampled(tuple(requests), seed)

    def close(self) -> None:
        """Let the sampler release what it holds."""
        with self._relay.named("sampler", self._instance, "close"):
            self._instance.component.close()

    def _sampled(self, requests: tuple[SampleRequest, ...], seed: int) -> Samples:
        """The answer, checked. Fewer responses at a time if memory runs out: they are the same."""
        while (answer := self._answer(requests, seed)) is _NO_MEMORY:
            at_a_time = min(self.params.batch or len(requests), len(requests))
            if at_a_time == 1 or not self.capabilities.smaller_batches:
                what = (
                    f"{at_a_time} responses, and sampler {self._instance} cannot sample fewer at a time"
                    if at_a_time > 1
                    else "a single response"
                )
                raise RunError(
                    f"no memory was left to sample {what}: {self._no_memory}. Make "
                    "rollout.max_new_tokens smaller, or choose another runtime.strategy or "
                    "runtime.frozen: `rlframe plan RECIPE` says what fits"
                )
            self.params = replace(self.params, batch=at_a_time // 2)
            warnings.warn(
                f"no memory was left to sample {at_a_time} responses at a time: from here on it is "
                f"{self.params.batch} (rollout.generation_batch)",
                MemoryWarning,
                stacklevel=2,
            )
        try:
            return checked_samples(
                answer,
                requests,
                self.params,
                version=self._version or 0,
                missing=self._missing,
                rows=self._policy.rows,
            )
        except ContractError as error:
            around = self._relay.around("rlframe_sample")
            raise RunError(f"sampler {self._instance}{around} {error}") from error

    def _answer(self, requests: tuple[SampleRequest, ...], seed: int) -> Any:
        """What the sampler returns; `_NO_MEMORY` if there was none for it."""
        component = self._instance.component
        with self._relay.named("sampler", self._instance, "sample"):
            try:
                return self._relay.hook.rlframe_sample(
                    sampler=component, requests=requests, params=self.params, seed=seed
                )
            except Exception as error:
                if not out_of_memory(error):
                    raise
                self._no_memory = str(error)  # not the error, whose traceback holds memory
        return _NO_MEMORY

    def _push(self, version: int) -> None:
        """See to it that the sampler has the policy's weights as they are now."""
        if version == self._version:
            return
        with self._relay.named("sampler", self._instance, "push"):
            proof = self._instance.component.push(version, self._probe)
        self._version = version
        try:
            given = checked_proof(proof, self._probe, self.capabilities)
        except ContractError as error:
            raise RunError(f"sampler {self._instance} {error}") from error
        if given is not None:
            self._refuse_other_weights(given, version)

    def _refuse_other_weights(self, given: list[list[float]], version: int) -> None:
        """Compare what the sampler's weights say about the probe with what the policy says.

        Raises:
          RunError: they say something else.
        """
        away = [
            abs(own - float(theirs))
            for text, row in zip(self._probe, given, strict=True)
            for own, theirs in zip(self._logprobs(text), row, strict=True)
        ]
        mean = sum(away) / max(len(away), 1)
        if not mean <= PROBE_LIMIT:  # NaN as well
            raise RunError(
                f"sampler {self._instance} has other weights than the policy after `push` of "
                f"version {version}: log-probabilities of the same tokens differ by {mean:.3g} nats on "
                f"average, "
                f"by {max(away, default=math.nan):.3g} at most, where {PROBE_LIMIT} are allowed. "
                "Some weights were not copied, or under another name, or a cache of older ones is used"
            )

    def _logprobs(self, text: Sequence[int]) -> list[float]:
        tokens = torch.tensor([list(text)], device=self._context.device)
        found: list[float] = self._policy.logprobs(tokens)[0].tolist()
        return found
