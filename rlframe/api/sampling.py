"""The contract of samplers, which write responses to prompts: built in, or another inference engine."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

from rlframe.api.answers import ContractError, kind_of, missing, shown
from rlframe.api.component import C, Component
from rlframe.types import StopReason

if TYPE_CHECKING:
    from torch import Tensor

ROUNDING = 1e-4
"""Nats by which a log-probability may be above 0."""

FILTERS = ("top_k", "top_p", "min_p")
"""Fields of `SamplingParams` that take tokens away, in the order in which they are applied."""

Distribution = Literal["none", "policy", "filtered"]
"""Which log-probabilities a sampler returns."""


@dataclass(frozen=True)
class SampleRequest:
    """One response to be written."""

    prompt_ids: tuple[int, ...]
    """The tokens of the prompt, at least one."""
    seed: int
    """From 0 to 2^63 - 1, of this response alone: it comes from the run's seed, the update and the
    number of the response, and is the same on any number of processes."""


@dataclass(frozen=True)
class SamplingParams:
    """How responses are sampled: one set for all requests of a call."""

    max_new_tokens: int
    """A response has 1 to `max_new_tokens` tokens."""
    eos_ids: frozenset[int]
    """Every token that ends a response, and is its last token."""
    temperature: float = 1.0
    """What logits are divided by, above 0. `SampledPolicy.next_logits` has done so."""
    top_k: int | None = None
    """The filters are applied in this order: first the k likeliest tokens are kept,"""
    top_p: float | None = None
    """then the smallest set of the likeliest with this probability,"""
    min_p: float | None = None
    """then those at least this many times as likely as the likeliest."""
    stop_strings: tuple[str, ...] = ()
    """A response ends with the token by which its text holds one of them."""
    logprobs: bool = False
    """Whether the log-probabilities of the sampled tokens are asked for."""
    batch: int | None = None
    """The most responses to sample at a time, all if None; for a sampler with `smaller_batches`."""

    @property
    def truncated(self) -> bool:
        """Whether filters take tokens away, so that not the policy's distribution is sampled."""
        return bool(self.top_k or self.min_p) or (self.top_p or 1) < 1


@dataclass(frozen=True)
class Samples:
    """What a sampler returns: one entry per request, in order."""

    ids: Sequence[Sequence[int]]
    """The sampled tokens of each response, a final EOS included."""
    stop_reasons: Sequence[StopReason]
    """Why each response ended."""
    weight_version: int
    """The `version` of the last `push`: a response of other weights is refused."""
    logprobs: Sequence[Sequence[float]] | None = None
    """The log-probability of each sampled token, in nats, of the distribution that the sampler
    declares. None if they were not asked for."""
    retried: int = 0
    """How many responses the sampler had to continue or to sample again, because they were dropped."""


@dataclass(frozen=True)
class SamplerCapabilities:
    """What a sampler can do, known from its config alone. A recipe that needs more is refused."""

    per_sample_seeds: bool = False
    """Whether equal prompts and seeds give equal responses whatever else is in the call, so that a run
    can be repeated on any number of processes."""
    stop_strings: bool = False
    """Whether it ends responses at `SamplingParams.stop_strings`."""
    filters: frozenset[str] = frozenset()
    """Which of top_k, top_p and min_p it applies."""
    logprobs: Distribution = "none"
    """Whether it returns log-probabilities: of the whole policy, or of what the filters leave, which is
    the distribution that was sampled from."""
    shares_weights: bool = False
    """Whether it samples with `self.policy` itself. The run then tries it on the architecture before
    any stage trains. One with weights of its own has to prove in `push` that they have arrived."""
    exact: bool = False
    """Whether it shares the weights and computes what the trainer computes, but for rounding. Else the
    run logs how far the two are apart, and says if nothing corrects for it."""
    smaller_batches: bool = False
    """Whether `SamplingParams.batch` bounds its memory, and changes nothing else."""
    cache_tokens: int | None = None
    """The most tokens whose keys and values it keeps; None for those of all responses at a time."""


class SampledPolicy(Protocol):
    """The policy, as a sampler may use it while `sample` or `push` runs, when its weights are whole."""

    @property
    def model(self) -> Any:
        """The transformers `...ForCausalLM`, whose weights must not be changed."""
        ...

    @property
    def padded(self) -> bool:
        """Whether `next_logits` takes rows with padding on the left."""
        ...

    def memory(self, *, capacity: int) -> Any:
        """An empty cache for rows of at most `capacity` tokens, prompt and response together.

        `select(rows)` drops all rows but those at these positions, and returns False if it cannot.
        """
        ...

    def next_logits(
        self, tokens: Tensor, positions: Tensor, mask: Tensor | None, cache: Any
    ) -> Tensor:
        """Logits [B, V] of the token after the last column, divided by the temperature.

        Args:
          tokens: [B, n] the columns that `cache` does not hold yet.
          positions: [B, n] their positions.
          mask: [B, held + n] 1 on real tokens, or None if there is no padding.
          cache: of `memory`, changed in place.
        """
        ...

    def without_token(self) -> list[int]:
        """The ids that the model's head has and the tokenizer has not: they must never be sampled."""
        ...


class Sampler(Component[C]):
    """Writes the responses of the policy in training.

    The engine builds one on each rank, connects it, and then, for each rollout and each evaluation on
    held-out prompts, calls `push` if the weights have changed, and `sample`. Responses of the reference
    model are always sampled by the one in the box.
    """

    @classmethod
    def capabilities(cls, config: C) -> SamplerCapabilities:
        """What it can do with this config."""
        raise missing(cls, "capabilities")

    def connect(self, policy: SampledPolicy) -> None:
        """Take the policy, once, before anything else; the default keeps it as `self.policy`.

        Raises:
          Exception: it cannot sample from this model; the run stops before it begins.
        """
        self.policy = policy

    def push(
        self, version: int, probe: Sequence[Sequence[int]]
    ) -> Sequence[Sequence[float]] | None:
        """Take the policy's weights as they are now, and forget every cache of older ones.

        Args:
          version: the number of updates that made these weights. `Samples.weight_version` returns it.
          probe: a few texts of two tokens and more.

        Returns:
          The log-probability at temperature 1 of each token of `probe` after the first: the engine
          compares them with its own, and ends the run if the weights did not arrive. None for a sampler
          that declares `shares_weights`.
        """
        self.version = version
        return None

    version: int = 0
    """Of the last `push`."""

    def sample(
        self, requests: Sequence[SampleRequest], params: SamplingParams, seed: int
    ) -> Samples:
        """One response to each request.

        Called on every rank with that rank's requests, at least one, without a gradient. It must not
        call a collective, since ranks may have different numbers of requests, nor change global random
        state. Whatever drops requests must continue them from their own tokens, or sample the whole
        batch again: to sample the dropped ones alone again favours short responses.

        Args:
          requests: in the order in which responses are returned.
          params: what is sampled.
          seed: from 0 to 2^63 - 1, of this call, for a sampler without seeds per sample.

        Raises:
          Exception: any; the run stops, and names this component and its distribution.
        """
        raise missing(self, "sample")

    def close(self) -> None:
        """Release what the sampler holds; called once when PPO is over, also when an error ends it."""

    policy: SampledPolicy
    """What `connect` was given."""


def checked_samples(
    answer: Any,
    requests: Sequence[SampleRequest],
    params: SamplingParams,
    *,
    version: int,
    missing: frozenset[int],
    rows: int,
) -> Samples:
    """A sampler's answer, as the contract wants it.

    Args:
      answer: what `sample` returned.
      requests: what it was asked for.
      params: how.
      version: of the weights that were pushed.
      missing: the ids below `rows` that have no token.
      rows: the number of ids of the model's head.

    Raises:
      ContractError: it is anything else.
    """
    if not isinstance(answer, Samples):
        raise ContractError(
            f"returned {shown(answer)}; it must return Samples(ids, stop_reasons, ...)"
        )
    if answer.weight_version != version:
        raise ContractError(
            f"returned responses of weights of version {answer.weight_version!r}; version {version} "
            "was pushed. A cache or a server still has older weights"
        )
    for name in ("ids", "stop_reasons", "logprobs"):
        found = getattr(answer, name)
        if found is None and name == "logprobs" and not params.logprobs:
            continue
        if not isinstance(found, list | tuple) or len(found) != len(requests):
            held = f"{len(found)} entries" if isinstance(found, list | tuple) else shown(found)
            raise ContractError(
                f"returned {held} as `{name}` for {len(requests)} requests; it must be a list with one "
                "entry for each, in order"
            )
    if type(answer.retried) is not int or answer.retried < 0:
        raise ContractError(f"returned retried={answer.retried!r}; it must be an int, 0 or more")
    for row in range(len(requests)):
        problem = _bad_response(answer, row, params, missing, rows)
        if problem:
            raise ContractError(f"returned response {row} {problem}", row=row)
    return answer


def _bad_response(
    answer: Samples, row: int, params: SamplingParams, missing: frozenset[int], rows: int
) -> str:
    """What is wrong with one response; nothing if it is sound."""
    ids, reason = answer.ids[row], answer.stop_reasons[row]
    if not isinstance(ids, list | tuple) or set(map(type, ids)) - {int}:
        return f"as {kind_of(ids)} {shown(ids)}; it must be a list of ints"
    if not 1 <= len(ids) <= params.max_new_tokens:
        return f"with {len(ids)} tokens; it must have 1 to {params.max_new_tokens}"
    strange = [i for i in ids if not 0 <= i < rows or i in missing]
    if strange:
        return f"with the id {strange[0]}, which has no token"
    if not isinstance(reason, StopReason):
        return f"with {shown(reason)} as its stop reason; it must be a StopReason"
    early = params.eos_ids.intersection(ids[:-1])
    if early:
        return f"that goes on after token {min(early)}, which ends a response"
    right = _reasons(ids, params)
    if reason not in right:
        return (
            f"of {len(ids)} tokens, the last one {ids[-1]}, with stop reason {reason.value!r}; it "
            f"must be {' or '.join(repr(r.value) for r in right)}"
        )
    return _bad_logprobs(answer.logprobs[row], len(ids)) if answer.logprobs is not None else ""


def _reasons(ids: Sequence[int], params: SamplingParams) -> list[StopReason]:
    """Why a response that ends so may have ended."""
    if ids[-1] in params.eos_ids:
        return [StopReason.EOS]
    found = [StopReason.LENGTH] if len(ids) == params.max_new_tokens else []
    return [*found, *([StopReason.STOP_STRING] if params.stop_strings else [])] or [StopReason.EOS]


def _bad_logprobs(found: Any, length: int) -> str:
    if not isinstance(found, list | tuple) or len(found) != length:
        held = f"{len(found)}" if isinstance(found, list | tuple) else shown(found)
        return f"with {held} log-probabilities for {length} tokens"
    wrong = [x for x in found if type(x) is not float or not -math.inf < x <= ROUNDING]
    return (
        f"with a log-probability of {wrong[0]!r}; it must be finite, and 0 or less" if wrong else ""
    )


def checked_capabilities(answer: Any) -> SamplerCapabilities:
    """What a sampler says it can do, as the contract wants it.

    Raises:
      ContractError: it is anything else.
    """
    if not isinstance(answer, SamplerCapabilities):
        raise ContractError(
            f"returned {shown(answer)} from `capabilities`; it must be SamplerCapabilities(...)"
        )
    unknown = set(answer.filters) - set(FILTERS)
    if unknown or answer.logprobs not in ("none", "policy", "filtered"):
        what = f"the filter {min(unknown)!r}" if unknown else f"logprobs={answer.logprobs!r}"
        raise ContractError(
            f"declared {what}; filters are top_k, top_p and min_p, and log-probabilities are none, "
            "policy or filtered"
        )
    if answer.exact and not answer.shares_weights:
        raise ContractError(
            "declared `exact` without `shares_weights`: what computes with other weights is not exact"
        )
    return answer


def checked_proof(
    answer: Any, probe: Sequence[Sequence[int]], able: SamplerCapabilities
) -> list[list[float]] | None:
    """What a sampler returned from `push`, as the contract wants it.

    Args:
      answer: what it returned.
      probe: what it was given.
      able: its capabilities.

    Raises:
      ContractError: it is anything else, or a sampler with weights of its own proved nothing.
    """
    if answer is None and able.shares_weights:
        return None
    lengths = [len(row) - 1 for row in probe]
    rows = answer if isinstance(answer, list | tuple) else []
    given = [list(row) if isinstance(row, list | tuple) else [] for row in rows]
    if [len(row) for row in given] != lengths or any(_bad_logprobs(r, len(r)) for r in given):
        raise ContractError(
            f"returned {shown(answer)} from `push`; it must return one log-probability per token of "
            f"the probe after the first: {lengths} of them, as plain numbers. None is for a sampler "
            "that declares `shares_weights`"
        )
    return given
