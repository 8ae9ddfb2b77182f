"""Runs with another sampler than the one in the box, and rewards that read what was sampled from."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rlframe.api import Needs, PluginConfig, RewardBatch, RewardProvider
from rlframe.compose import Outcome
from rlframe.errors import RecipeError
from rlframe.recipe import load_recipe
from rlframe.registry.discovery import Registry
from tests.compose import test_run
from tests.compose.test_run import Notes, metrics

run = test_run.run
"""The fixture."""

CONTINUOUS = (
    "rollout.sampler={type: continuous, page_tokens: 16, cache_tokens: 512}",
    "rollout.reproducible=false",
)


def test_a_run_with_continuous_batching_measures_and_corrects_it(
    run: Callable[..., Outcome], tiny_recipe: Callable[..., Path]
) -> None:
    display = Notes()
    more = ("algorithm.importance_correction=truncate",)
    first, second, _ = metrics(run(tiny_recipe(), *CONTINUOUS, *more, display=display))
    assert any("rollout.sampler: 'continuous' computes other" in line for line in display.said)
    for row in (first, second):
        assert abs(row["sampler/kl_to_policy"]) < 1e-3  # the same weights, by other kernels
        assert row["sampler/importance"] == pytest.approx(1, abs=1e-4)
        assert row["sampler/bounded_share"] == 0
        assert row["sampler/retried_share"] == 0


def test_without_a_correction_the_run_says_so(
    run: Callable[..., Outcome], tiny_recipe: Callable[..., Path]
) -> None:
    display = Notes()
    run(tiny_recipe(), *CONTINUOUS, "ppo.updates=1", display=display)
    assert any("Nothing corrects for it" in line for line in display.said)


def test_two_runs_on_as_many_processes_are_the_same_run(
    run: Callable[..., Outcome], tiny_recipe: Callable[..., Path]
) -> None:
    def measured() -> list[dict[str, float]]:
        clock = ("time/", "speed/", "memory/", "eps")
        rows = metrics(run(tiny_recipe(), *CONTINUOUS))
        return [{k: v for k, v in row.items() if not k.startswith(clock)} for row in rows]

    assert measured() == measured()


class Surprise(RewardProvider[PluginConfig]):
    """Minus the mean log-probability of a response's tokens: how unlikely it was."""

    seen: list[RewardBatch] = []  # noqa: RUF012

    @classmethod
    def needs(cls, config: PluginConfig) -> Needs:
        return Needs(logprobs=True)

    def score(self, batch: RewardBatch) -> list[float]:
        type(self).seen.append(batch)
        assert batch.logprobs is not None
        return [-sum(row) / len(row) for row in batch.logprobs]


class Peeks(RewardProvider[PluginConfig]):
    """Does not ask."""

    def score(self, batch: RewardBatch) -> list[float]:
        assert batch.logprobs is None
        return [0.0] * len(batch)


@pytest.fixture
def registry() -> Registry:
    known = Registry()
    known.add("reward_providers", "surprise", Surprise)
    known.add("reward_providers", "peeks", Peeks)
    return known


@pytest.mark.parametrize("sampler", [(), CONTINUOUS], ids=["builtin", "continuous"])
def test_a_reward_gets_the_log_probabilities_that_it_asks_for(
    run: Callable[..., Outcome], tiny_recipe: Callable[..., Path], registry: Registry, sampler: Any
) -> None:
    """With k1 and one token per term, Σ log π over a response is minus what entropy counts."""
    Surprise.seen.clear()
    more = ("rewards.surprise={type: surprise}", *sampler)
    first, *_ = metrics(run(tiny_recipe(), *more, registry=registry))
    for batch in Surprise.seen:
        assert batch.logprobs is not None
        assert list(map(len, batch.logprobs)) == batch.response_lengths
        assert batch.rows([0]).logprobs == [batch.logprobs[0]]
    assert first["reward/surprise/raw"] > 0
    assert first["sampler/logprob"] == pytest.approx(-first["objective/entropy"], abs=1e-3)


def test_a_reward_that_does_not_ask_gets_none_where_another_does_not_either(
    run: Callable[..., Outcome], tiny_recipe: Callable[..., Path], registry: Registry
) -> None:
    assert run(tiny_recipe(), "rewards.peeks={type: peeks}", "rollout.top_k=5", registry=registry)


def test_a_sampler_without_log_probabilities_is_refused_where_one_asks(
    tiny_recipe: Callable[..., Path], registry: Registry
) -> None:
    from rlframe.api import SamplerCapabilities
    from rlframe.rollout.builtin import Builtin

    class Mute(Builtin):
        @classmethod
        def capabilities(cls, config: Any) -> SamplerCapabilities:
            return SamplerCapabilities(per_sample_seeds=True, shares_weights=True)

    registry.add("samplers", "mute", Mute)
    asked = ["rollout.sampler={type: mute}", "rewards.surprise={type: surprise}"]
    asked += ["algorithm.importance_correction=mask", "rollout.top_k=4"]
    with pytest.raises(RecipeError) as caught:
        load_recipe(tiny_recipe(), asked, registry=registry)
    for words in (
        "rewards.surprise: it needs the log-probabilities of sampled tokens, which sampler 'mute'",
        "algorithm.importance_correction: sampler 'mute' cannot return log-probabilities",
        "rollout.top_k: sampler 'mute' cannot apply top_k",
    ):
        assert words in str(caught.value)


def test_the_sampler_is_in_the_manifest_and_in_the_resolved_recipe(
    run: Callable[..., Outcome], tiny_recipe: Callable[..., Path]
) -> None:
    outcome = run(tiny_recipe(), *CONTINUOUS, "ppo.updates=1")
    manifest = json.loads((outcome.directory / "manifest.json").read_text())
    assert manifest["plugins"]["rollout.sampler"]["name"] == "continuous"
    sampler = manifest["recipe"]["rollout"]["sampler"]
    assert sampler == {
        "type": "continuous",
        "cache_tokens": 512,
        "page_tokens": 16,
        "batch_tokens": 2048,
    }
