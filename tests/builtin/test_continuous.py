"""Continuous batching: the right distribution from a small cache, and no request is ever lost."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from rlframe.api import Context, SampledPolicy, SampleRequest, SamplingParams, StopReason
from rlframe.builtin.continuous import Continuous, ContinuousConfig
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
    for request, ids, told in zip(REQUESTS, found.ids, found.logprobs, strict=True):
        tokens = torch.tensor([[*request.prompt_ids, *ids]])
        with torch.no_grad():
            own = policy.logprobs(tokens)[0, len(request.prompt_ids) - 1 :]
        worst = max(worst, float((own - torch.tensor(told)).abs().max()))
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
    with pytest.raises(ValueError, match="29 tokens, and cache_tokens is 20"):
        sampler.sample(REQUESTS, PARAMS, 0)


class Failing:
    """transformers' manager, which fails or drops some requests the first time."""

    def __init__(self, manager: Any, spoil: Any) -> None:
        self._manager, self._spoil = manager, spoil

    def __getattr__(self, name: str) -> Any:
        return getattr(self._manager, name)

    def get_result(self, timeout: float) -> Any:
        output = self._manager.get_result(timeout=timeout)
        return output if output is None else self._spoil(output)


def with_faults(sampler: Continuous, monkeypatch: Any, spoil: Any) -> None:
    """Let `spoil` change what the library reports in its first session."""
    from contextlib import contextmanager

    model: Any = sampler.policy.model
    sound = model.continuous_batching_context_manager
    sessions: list[int] = []

    @contextmanager
    def manager(**given: Any) -> Any:
        sessions.append(1)
        with sound(**given) as running:
            yield running if len(sessions) > 1 else Failing(running, spoil)

    monkeypatch.setattr(model, "continuous_batching_context_manager", manager)


def test_a_request_that_failed_is_continued_from_its_own_tokens(monkeypatch: Any) -> None:
    sampler, policy = connected()
    halves: dict[int, list[int]] = {}

    def spoil(output: Any) -> Any:
        number = int(output.request_id.rpartition("_")[2])
        if number % 3 == 0 and len(output.generated_tokens) > 4:
            output.generated_tokens = output.generated_tokens[:4]
            output.logprobs = output.logprobs[:4]
            output.error = "no memory"
            halves[number] = list(output.generated_tokens)
        return output

    with_faults(sampler, monkeypatch, spoil)
    found = sampler.sample(REQUESTS, PARAMS, 3)
    assert halves
    assert found.retried == len(halves)
    for number, begun in halves.items():
        assert found.ids[number][:4] == begun
        assert len(found.ids[number]) > 4
    assert away(policy, found) < 1e-4


class Dead:
    """A manager whose thread has ended, and which reports nothing."""

    def __init__(self, manager: Any) -> None:
        self._manager = manager

    def add_request(self, *args: Any, **given: Any) -> Any:
        return self._manager.add_request(*args, **given)

    def get_result(self, timeout: float) -> None:
        return None

    def is_running(self) -> bool:
        return False


@pytest.mark.parametrize("sessions_lost", [1, 99])
def test_requests_of_which_nothing_is_reported_are_sampled_again_all_of_them(
    monkeypatch: Any, sessions_lost: int
) -> None:
    from contextlib import contextmanager

    sampler, policy = connected()
    model: Any = sampler.policy.model
    sound = model.continuous_batching_context_manager
    asked: list[int] = []

    @contextmanager
    def manager(**given: Any) -> Any:
        asked.append(1)
        with sound(**given) as running:
            yield Dead(running) if len(asked) <= sessions_lost else running

    monkeypatch.setattr(model, "continuous_batching_context_manager", manager)
    if sessions_lost > 5:
        with pytest.raises(RuntimeError, match="24 of 24 responses unfinished in 5 attempts"):
            sampler.sample(REQUESTS, PARAMS, 3)
        return
    found = sampler.sample(REQUESTS, PARAMS, 3)
    assert found.retried == len(REQUESTS)
    assert away(policy, found) < 1e-4


def test_a_model_without_continuous_batching_is_refused() -> None:
    sampler, policy = connected()
    policy.model = torch.nn.Linear(2, 2)
    with pytest.raises(TypeError, match="Linear has no continuous batching"):
        sampler.connect(policy)
