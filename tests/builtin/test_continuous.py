"""Continuous batching: the right distribution from a small cache, and no request is ever lost."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from rlframe.api import Context, SampledPolicy, SampleRequest, SamplingParams, StopReason
from rlframe.builtin.continuous import Continuous, ContinuousConfig
from rlframe.errors import RecipeError
from rlframe.testing import SamplerSuite
from rlframe.testing.world import sampled_policy, tiny_tokenizer

EOS = frozenset(range(60, 75))
REQUESTS = [SampleRequest((1, *range(100, 100 + n % 5)), n) for n in range(24)]
PARAMS = SamplingParams(max_new_tokens=24, eos_ids=EOS, logprobs=True)


class TestContinuous(SamplerSuite):
    component, config = Continuous, {"page_tokens": 16}


def connected(**config: Any) -> tuple[Continuous, Any]:
    policy = sampled_policy(1.0)
    context = SimpleNamespace(device=torch.device("cpu"), tokenizer=tiny_tokenizer())
    sampler = Continuous(ContinuousConfig(**{"page_tokens": 4, **config}), cast(Context, context))
    sampler.connect(cast(SampledPolicy, policy))
    sampler.push(0, ())
    return sampler, policy


def away(policy: Any, found: Any) -> float:
    """The largest distance of its log-probabilities from those of a plain forward pass, in nats."""
    worst = 0.0
    for request, ids, message in zip(REQUESTS, found.ids, found.logprobs, strict=True):
        tokens = torch.tensor([[*request.prompt_ids, *ids]])
        with torch.no_grad():
            own = policy.logprobs(tokens)[0, len(request.prompt_ids) - 1 :]
        worst = max(worst, float((own - torch.tensor(message)).abs().max()))
    return worst


@pytest.mark.parametrize("cache", [32, 64, 4096])
def test_a_cache_too_small_for_all_makes_responses_wait_and_changes_no_probability(
    cache: int,
) -> None:
    """With 32 tokens hardly more than one response fits at a time."""
    sampler, policy = connected(cache_tokens=cache, batch_tokens=64)
    found = sampler.sample(REQUESTS, PARAMS, 3)
    assert away(policy, found) < 1e-4
    ended = [ids[-1] in EOS for ids in found.ids]
    assert {True, False} == set(ended)
    assert [reason is StopReason.EOS for reason in found.stop_reasons] == ended
    assert all(ended[n] or len(found.ids[n]) == 24 for n in range(len(REQUESTS)))


def test_equal_seeds_of_the_call_give_equal_responses() -> None:
    sampler, _ = connected()
    first, again, other = (sampler.sample(REQUESTS, PARAMS, seed) for seed in (5, 5, 6))
    assert first.ids == again.ids != other.ids


def test_a_prompt_that_cannot_fit_is_refused_with_the_key() -> None:
    sampler, _ = connected(cache_tokens=20)
    with pytest.raises(RecipeError, match="29 tokens, and cache_tokens is 20"):
        sampler.sample(REQUESTS, PARAMS, 0)


class Spoilt:
    """transformers' manager, some of whose answers are spoilt."""

    def __init__(self, manager: Any, **spoilt: Any) -> None:
        self._manager = manager
        vars(self).update(spoilt)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._manager, name)


def with_faults(sampler: Continuous, monkeypatch: Any, spoil: Any, *, sessions: int = 1) -> None:
    """Let `spoil` change the manager of so many sessions."""
    model: Any = sampler.policy.model
    sound = model.continuous_batching_context_manager
    begun: list[int] = []

    @contextmanager
    def session(**given: Any) -> Iterator[Any]:
        begun.append(1)
        with sound(**given) as manager:
            yield spoil(manager) if len(begun) <= sessions else manager

    monkeypatch.setattr(model, "continuous_batching_context_manager", session)


def test_a_request_that_failed_is_continued_from_its_own_tokens(monkeypatch: Any) -> None:
    sampler, policy = connected()
    halves: dict[int, list[int]] = {}

    def failing(manager: Any) -> Any:
        def get_result(timeout: float) -> Any:
            output = manager.get_result(timeout=timeout)
            number = -1 if output is None else int(output.request_id.rpartition("_")[2])
            if number >= 0 and number % 3 == 0 and len(output.generated_tokens) > 4:
                output.generated_tokens = output.generated_tokens[:4]
                output.logprobs = output.logprobs[:4]
                output.error = "no memory"
                halves[number] = list(output.generated_tokens)
            return output

        return Spoilt(manager, get_result=get_result)

    with_faults(sampler, monkeypatch, failing)
    found = sampler.sample(REQUESTS, PARAMS, 3)
    assert halves
    assert found.retried == len(halves)
    for number, begun in halves.items():
        assert found.ids[number][:4] == begun
        assert len(found.ids[number]) > 4
    assert away(policy, found) < 1e-4


def dead(manager: Any) -> Any:
    """Its thread has ended, and it reports nothing."""
    return Spoilt(manager, get_result=lambda timeout: None, is_running=lambda: False)


def full(manager: Any) -> Any:
    """It takes no request but the first."""
    taken: list[int] = []

    def add_request(*given: Any, **named: Any) -> Any:
        taken.append(1)
        return manager.add_request(*given, **named) if len(taken) == 1 else None

    return Spoilt(manager, add_request=add_request)


@pytest.mark.parametrize("spoil", [dead, full])
def test_where_requests_are_lost_all_are_sampled_again(monkeypatch: Any, spoil: Any) -> None:
    sampler, policy = connected()
    with_faults(sampler, monkeypatch, spoil)
    found = sampler.sample(REQUESTS, PARAMS, 3)
    assert found.retried == len(REQUESTS)
    assert away(policy, found) < 1e-4


def test_requests_that_are_lost_again_and_again_end_the_run(monkeypatch: Any) -> None:
    sampler, _ = connected()
    with_faults(sampler, monkeypatch, dead, sessions=99)
    with pytest.raises(RuntimeError, match="24 of 24 responses unfinished in 5 attempts"):
        sampler.sample(REQUESTS, PARAMS, 3)


def test_a_model_without_continuous_batching_is_refused() -> None:
    sampler, policy = connected()
    policy.model = torch.nn.Linear(2, 2)
    with pytest.raises(TypeError, match="Linear has no continuous batching"):
        sampler.connect(policy)
