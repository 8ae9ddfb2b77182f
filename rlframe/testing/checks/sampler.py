"""What a sampler promises."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from rlframe.api.sampling import (
    Sampler,
    SamplerCapabilities,
    SampleRequest,
    Samples,
    SamplingParams,
    checked_capabilities,
    checked_proof,
    checked_samples,
)
from rlframe.functional.sampling import keep
from rlframe.models.policy import Policy
from rlframe.testing.check import Broken, DoesNotApply, check, kept
from rlframe.testing.checks.common import COMMON, random_states_moved, state_can_be_kept
from rlframe.testing.subject import Subject
from rlframe.testing.world import sampled_policy
from rlframe.types import StopReason

Subjects = Subject[Sampler[Any]]

PROMPTS: tuple[tuple[int, ...], ...] = ((1, 5, 9, 17), (1, 30), (1, 40, 41), (1,), (1, 7, 7, 7, 8))
EOS = frozenset(range(60, 90))
"""So many that responses end for either reason."""
PARAMS = SamplingParams(max_new_tokens=8, eos_ids=EOS, temperature=0.8)
FILTERS: dict[str, dict[str, Any]] = {
    "top_k": {"top_k": 20},
    "top_p": {"top_p": 0.7},
    "min_p": {"min_p": 0.05},
}
NEAR = 1e-2
"""Nats by which log-probabilities may differ from those of a plain forward pass in float32."""
DRAWS = 1500
DEVIATIONS = 7.0
"""Standard deviations from its mean at which a statistic is no longer chance: once in 10^11."""


def _connected(subject: Subjects) -> tuple[Sampler[Any], Policy]:
    """A sampler of its own, connected to a policy of its own, which has been pushed."""
    sampler, policy = subject.build(), sampled_policy(PARAMS.temperature)
    sampler.connect(policy)
    _pushed(sampler, policy, 0)
    return sampler, policy


def _pushed(sampler: Sampler[Any], policy: Policy, version: int) -> None:
    able = sampler.capabilities(sampler.config)
    with kept():
        proof = checked_proof(sampler.push(version, PROMPTS[:3]), PROMPTS[:3], able)
    if proof is None:
        return
    own = [policy.logprobs(torch.tensor([text]))[0].tolist() for text in PROMPTS[:3]]
    away = max(
        abs(a - b) for x, y in zip(own, proof, strict=True) for a, b in zip(x, y, strict=True)
    )
    if not away < NEAR:
        raise Broken(
            f"after `push` its log-probabilities differ from the policy's by {away:.2g} nats"
        )


def _requests(prompts: Sequence[tuple[int, ...]], first: int = 0) -> list[SampleRequest]:
    return [SampleRequest(ids, 1000 + first + number) for number, ids in enumerate(prompts)]


def _able(subject: Subjects) -> SamplerCapabilities:
    with kept():
        return checked_capabilities(subject.component.capabilities(subject.validated()))


def _sampled(
    sampler: Sampler[Any],
    policy: Policy,
    requests: Sequence[SampleRequest],
    params: SamplingParams = PARAMS,
    *,
    version: int = 0,
    seed: int = 11,
) -> Samples:
    answer = sampler.sample(tuple(requests), params, seed)
    with kept("a request"):
        return checked_samples(
            answer,
            requests,
            params,
            version=version,
            missing=frozenset(policy.without_token()),
            rows=policy.rows,
        )


@torch.no_grad()
def _logits(policy: Policy, prompt: Sequence[int], ids: Sequence[int]) -> Tensor:
    """[T, V] of each token of a response by one plain forward pass, at the sampler's temperature."""
    tokens = torch.tensor([[*prompt, *ids]])
    hidden = policy.hidden(tokens[:, :-1], use_cache=False).last_hidden_state
    return policy.head(hidden[0, len(prompt) - 1 :]) / policy.temperature


@check(
    expected="SamplerCapabilities from `capabilities`, the same from the config alone each time",
    likely="`capabilities` is not a class method, or declares a filter that there is not",
    do="return `SamplerCapabilities(...)` with what the sampler can do",
)
def declares_what_it_can(subject: Subjects) -> str:
    """A recipe is refused by it, before any model is loaded."""
    able = _able(subject)
    if able != _able(subject):
        raise Broken("another answer the second time")
    return ", ".join(
        [*sorted(able.filters), f"log-probabilities: {able.logprobs}"]
        + [name for name in ("per_sample_seeds", "stop_strings", "exact") if getattr(able, name)]
    )


@check(
    expected="for each request, in order, 1 to max_new_tokens tokens that exist, which end with the "
    "first EOS or at the limit, with the reason for it",
    likely="responses come back in another order, without their final EOS, or with padding behind it",
    do="keep the final EOS, cut padding, put responses in the order of requests, and never sample "
    "`policy.without_token()`",
)
def one_response_per_request(subject: Subjects) -> str:
    """Several at a time, and one alone."""
    sampler, policy = _connected(subject)
    found = _sampled(sampler, policy, _requests(PROMPTS * 4))
    _sampled(sampler, policy, _requests(PROMPTS[:1]))
    counts = Counter(reason.value for reason in found.stop_reasons)
    return ", ".join(f"{number} {reason}" for reason, number in sorted(counts.items()))


@check(
    expected="tokens in the proportions of the policy's own distribution at the temperature",
    likely="the temperature is left out or applied twice, a default filter such as top_k=50 is on, or "
    "prompts of a batch see each other or their padding",
    do="set every filter of the library yourself, and compare its logits with `policy.next_logits`",
)
def draws_from_the_policy(subject: Subjects) -> str:
    """First tokens of many responses to two prompts of unequal length, in one call."""
    sampler, policy = _connected(subject)
    params = replace(PARAMS, max_new_tokens=1)
    asked = _requests([PROMPTS[0], PROMPTS[1]] * DRAWS)
    found = _sampled(sampler, policy, asked, params)
    worst = 0.0
    for place in (0, 1):
        expected = _logits(policy, PROMPTS[place], [0])[0].double().softmax(-1) * DRAWS
        counts = torch.zeros_like(expected)
        for ids in found.ids[place::2]:
            counts[ids[0]] += 1
        often = expected >= 5
        pairs = [*zip(counts[often].tolist(), expected[often].tolist(), strict=True)]
        pairs.append((float(counts[~often].sum()), float(expected[~often].sum()) or 1e-9))
        chi = sum((seen - wanted) ** 2 / wanted for seen, wanted in pairs)
        free = len(pairs) - 1
        worst = max(worst, (chi - free) / math.sqrt(2 * free))
    if worst > DEVIATIONS:
        raise Broken(f"χ² of {2 * DRAWS} tokens is {worst:.1f} standard deviations above its mean")
    return f"χ² {worst:+.1f} standard deviations"


@check(
    expected="the log-probabilities that it declares, of each token, as a plain forward pass has them",
    likely="they are those of another temperature, of before the filters, or shifted by a token",
    do="take them from the logits that the token was drawn from, after the temperature and, for "
    "'filtered', after the filters",
)
def logprobs_are_those_declared(subject: Subjects) -> str:
    """What the run corrects with, and how it measures the sampler."""
    able = _able(subject)
    if able.logprobs == "none":
        raise DoesNotApply("it declares none")
    sampler, policy = _connected(subject)
    away = 0.0
    for filters in ({}, *(FILTERS[name] for name in sorted(able.filters))):
        params = replace(PARAMS, logprobs=True, **filters)
        found = _sampled(sampler, policy, _requests(PROMPTS * 2), params)
        away = max(away, _logprobs_away(policy, found, params, able))
    if away > NEAR:
        raise Broken(f"a difference of {away:.2g} nats")
    return f"to {away:.1e} nats"


def _logprobs_away(
    policy: Policy, found: Samples, params: SamplingParams, able: SamplerCapabilities
) -> float:
    away = 0.0
    for prompt, ids, given in zip(PROMPTS * 2, found.ids, found.logprobs or (), strict=True):
        logits = _logits(policy, prompt, ids).double()
        if able.logprobs == "filtered":
            logits = keep(logits, top_k=params.top_k, top_p=params.top_p, min_p=params.min_p)
        tokens = torch.tensor(list(ids))[:, None]
        own = logits.log_softmax(-1).gather(-1, tokens).squeeze(-1)
        away = max(away, float((own - torch.tensor(list(given))).abs().max()))
    return away


@check(
    expected="no token that a filter takes away",
    likely="a filter that is declared is not passed on",
    do="pass every filter of `params` on, or do not declare it",
)
def filters_are_applied(subject: Subjects) -> None:
    """Only those that are declared are asked for."""
    able = _able(subject)
    if not able.filters:
        raise DoesNotApply("it declares no filter")
    sampler, policy = _connected(subject)
    for name in sorted(able.filters):
        params = replace(PARAMS, **FILTERS[name])
        found = _sampled(sampler, policy, _requests(PROMPTS * 4), params)
        for prompt, ids in zip(PROMPTS * 4, found.ids, strict=True):
            given: dict[str, Any] = {"top_k": None, "top_p": None, "min_p": None, **FILTERS[name]}
            kept = keep(_logits(policy, prompt, ids), **given)
            tokens = torch.tensor(list(ids))[:, None]
            if not bool(kept.gather(-1, tokens).isfinite().all()):
                raise Broken(f"a token that {name}={FILTERS[name][name]} takes away")


@check(
    expected="responses that end with the token by which their text holds a stop string",
    likely="stop strings are ignored, or the tokens are cut back to before the string",
    do="keep every token that was sampled: the engine cuts the text",
)
def stops_at_stop_strings(subject: Subjects) -> str:
    """The letter e is in most responses."""
    if not _able(subject).stop_strings:
        raise DoesNotApply("it declares no stop strings")
    sampler, policy = _connected(subject)
    params = replace(PARAMS, stop_strings=("e",))
    found = _sampled(sampler, policy, _requests(PROMPTS * 4), params)
    decode = subject.context.tokenizer.decode
    for ids, reason in zip(found.ids, found.stop_reasons, strict=True):
        if "e" in decode(list(ids[:-1])):
            raise Broken("a response that goes on after its text held the stop string")
        if (reason is StopReason.STOP_STRING) and "e" not in decode(list(ids)):
            raise Broken("the reason stop_string for a response without it")
    return f"{sum(r is StopReason.STOP_STRING for r in found.stop_reasons)} of {len(found.ids)}"


@check(
    expected="the same response for the same prompt and seed in any batch, and others for other seeds",
    likely="one random state is drawn from for all responses, or the seed of the call is used",
    do="seed each response by its request, or declare `per_sample_seeds=False`",
)
def equal_seeds_equal_responses(subject: Subjects) -> None:
    """Ranks have different shares of a rollout."""
    able = _able(subject)
    if not able.per_sample_seeds:
        raise DoesNotApply("it declares that responses depend on each other")
    sampler, policy = _connected(subject)
    asked = _requests(PROMPTS * 2)
    whole = [list(ids) for ids in _sampled(sampler, policy, asked).ids]
    backwards = _sampled(sampler, policy, asked[::-1], seed=5).ids
    if [list(ids) for ids in backwards][::-1] != whole:
        raise Broken("other responses in another order, or with another seed of the call")
    alone = [list(_sampled(sampler, policy, [one]).ids[0]) for one in asked[:3]]
    if alone != whole[:3]:
        raise Broken("other responses to requests alone")
    if [list(i) for i in _sampled(sampler, policy, _requests(PROMPTS * 2, 500)).ids] == whole:
        raise Broken("the same responses for other seeds")


@check(
    expected="the same responses with fewer at a time",
    likely="`params.batch` is ignored, or responses depend on their neighbours",
    do="sample at most `params.batch` at a time, or declare `smaller_batches=False`",
)
def smaller_batches_change_nothing(subject: Subjects) -> None:
    """What the engine does when memory runs out."""
    able = _able(subject)
    if not able.smaller_batches or not able.per_sample_seeds:
        raise DoesNotApply("it declares no smaller batches, or that responses depend on each other")
    sampler, policy = _connected(subject)
    asked = _requests(PROMPTS * 2)
    whole = _sampled(sampler, policy, asked)
    parts = _sampled(sampler, policy, asked, replace(PARAMS, batch=3))
    if [list(ids) for ids in parts.ids] != [list(ids) for ids in whole.ids]:
        raise Broken("other responses with a batch of 3")


@check(
    expected="after `push`, responses of the new weights, under the new version",
    likely="a copy of the weights or a cache of keys and values is older than the push",
    do="copy the weights and empty every cache in `push`, and return its version with the samples",
)
def samples_from_the_weights_that_were_pushed(subject: Subjects) -> None:
    """The policy is changed in place, as an optimiser does it, so that one token is nearly certain."""
    sampler, policy = _connected(subject)
    _sampled(sampler, policy, _requests(PROMPTS * 2))
    with torch.no_grad():  # all texts end in about the same state, and one token has its direction
        hidden = policy.hidden(torch.tensor([PROMPTS[0]]), use_cache=False).last_hidden_state[0, -1]
        head = policy.model.get_output_embeddings()
        head.weight.zero_()
        head.weight[sorted(EOS)[0]] = 40 * hidden / hidden.norm()
    _pushed(sampler, policy, 1)
    found = _sampled(sampler, policy, _requests([PROMPTS[0]] * 10), version=1)
    first = [ids[0] for ids in found.ids]
    if first != [sorted(EOS)[0]] * 10:
        raise Broken(
            f"the first tokens {first}, where {sorted(EOS)[0]} is certain by the new weights"
        )


@check(
    expected="the global random states of Python, NumPy and torch as they were, and the weights too",
    likely="the library seeds or draws from torch's global generator",
    do="draw inside `torch.random.fork_rng()`, or from a generator of your own",
)
def nothing_else_is_changed(subject: Subjects) -> None:
    """Random numbers that a sampler takes change those of everything after it."""
    sampler, policy = _connected(subject)
    before = [parameter.clone() for parameter in policy.parameters()]
    changed = random_states_moved(lambda: _sampled(sampler, policy, _requests(PROMPTS)))
    if changed:
        raise Broken(f"`sample` moved the global random state of {', '.join(changed)}")
    if not all(map(torch.equal, before, policy.parameters())):
        raise Broken("`sample` changed the policy's weights")


@check(
    expected="`close` without an error, before anything was sampled and after",
    likely="it closes something that is opened by the first `sample`",
    do="release what is there",
)
def can_be_closed(subject: Subjects) -> None:
    """A run that ends with an error closes it too."""
    subject.build().close()
    sampler, policy = _connected(subject)
    _sampled(sampler, policy, _requests(PROMPTS[:2]))
    sampler.close()


SAMPLER = (
    *COMMON,
    state_can_be_kept,
    declares_what_it_can,
    one_response_per_request,
    draws_from_the_policy,
    logprobs_are_those_declared,
    filters_are_applied,
    stops_at_stop_strings,
    equal_seeds_equal_responses,
    smaller_batches_change_nothing,
    samples_from_the_weights_that_were_pushed,
    nothing_else_is_changed,
    can_be_closed,
)
