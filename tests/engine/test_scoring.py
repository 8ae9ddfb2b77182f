from __future__ import annotations

import math
import time
from typing import Any

import pytest
import torch

from rlframe.api import (
    HookPlugin,
    PluginConfig,
    Prompt,
    RewardBatch,
    RewardProvider,
    StopReason,
    hookimpl,
)
from rlframe.api.component import Instance
from rlframe.engine.scoring import RewardScorer, WeightedReward
from rlframe.errors import RunError
from rlframe.registry.relay import Relay
from rlframe.rollout.sampler import pack
from rlframe.types import Rollout


class Scripted(RewardProvider[PluginConfig]):
    """Scores by a function of the batch."""

    cheap_to_repeat = True

    def __init__(self, answer: Any) -> None:
        self.answer = answer

    def score(self, batch: RewardBatch) -> Any:
        return self.answer(batch)


def rollout() -> Rollout:
    """Three responses of 2, 1 and 3 tokens; the second was cut, the third ends in EOS (2)."""
    prompts = tuple(Prompt(text, (1, 5)) for text in ("ask", "ask", "beg"))
    return Rollout(
        sequences=pack(
            [p.ids for p in prompts], [[7, 2], [8], [9, 9, 2]], device=torch.device("cpu")
        ),
        prompts=prompts,
        texts=("yes", "no", "so so"),
        stop_reasons=(StopReason.EOS, StopReason.LENGTH, StopReason.EOS),
        group_ids=(0, 0, 1),
        samples=(0, 1, 2),
        update=4,
    )


def scorer(
    *rewards: tuple[Any, float],
    time_limit_seconds: float | None = None,
    normalize: Any = "none",
    **kwargs: Any,
) -> RewardScorer:
    mix = [
        WeightedReward(
            Instance(f"r{i}", f"scripted (dist {i}.0)", Scripted(answer)),
            weight,
            time_limit_seconds,
            normalize,
        )
        for i, (answer, weight) in enumerate(rewards)
    ]
    return RewardScorer(mix, Relay(), **{**ALONE, **kwargs})


ALONE: Any = {"sample_reference": None, "reduce": lambda x: x, "seed": 0, "rank": 0}


def test_a_score_lands_on_the_last_generated_token_eos_included() -> None:
    found = scorer((lambda b: [10.0, 20.0, 30.0], 1.0)).score(rollout())
    assert found.rewards.tolist() == [[0, 10, 0], [20, 0, 0], [0, 0, 30]]


def test_weights_multiply_and_rewards_add_up() -> None:
    found = scorer((lambda b: [1.0, 2.0, 3.0], 2.0), (lambda b: [1.0, 1.0, 1.0], -0.5)).score(
        rollout()
    )
    assert found.mix.tolist() == [1.5, 3.5, 5.5]
    assert found.raw["r0"].tolist() == [1, 2, 3]
    assert found.weighted["r1"].tolist() == [-0.5, -0.5, -0.5]


def test_a_row_of_token_rewards_lies_on_its_tokens() -> None:
    found = scorer((lambda b: [[1.0, 2.0], [3.0], 4.0], 1.0)).score(rollout())
    assert found.rewards.tolist() == [[1, 2, 0], [3, 0, 0], [0, 0, 4]]
    assert found.raw["r0"].tolist() == [3, 3, 4]


def test_tensors_and_numpy_numbers_are_numbers() -> None:
    import numpy as np

    assert scorer((lambda b: torch.tensor([1.0, 2.0, 3.0]), 1.0)).score(rollout()).mix.tolist() == [
        1,
        2,
        3,
    ]
    assert scorer((lambda b: np.float32([1, 2, 3]), 1.0)).score(rollout()).mix.tolist() == [1, 2, 3]


@pytest.mark.parametrize(
    "bad", [math.nan, math.inf, None, "0.5", [1.0], [1.0, math.nan, 2.0]], ids=str
)
def test_anything_but_finite_numbers_stops_the_run_and_shows_the_sample(bad: Any) -> None:
    with pytest.raises(RunError) as caught:
        scorer((lambda b: [1.0, 1.0, bad], 1.0)).score(rollout())
    text = str(caught.value)
    assert "'r0' of type scripted (dist 0.0)" in text
    assert repr(bad) in text
    assert "sample 2 of update 4, ended by eos" in text
    assert "'beg'" in text
    assert "'so so'" in text


@pytest.mark.parametrize("count", [0, 2, 4])
def test_a_wrong_number_of_values_stops_the_run(count: int) -> None:
    with pytest.raises(RunError, match=rf"'r0'.*returned {count} values for 3 responses"):
        scorer((lambda b: [0.0] * count, 1.0)).score(rollout())


def test_a_single_number_is_not_spread_over_the_batch() -> None:
    with pytest.raises(RunError, match=r"returned 0.5 for 3 responses"):
        scorer((lambda b: 0.5, 1.0)).score(rollout())


def test_a_reward_that_raises_is_named_with_the_sample_that_breaks_it() -> None:
    def fragile(batch: RewardBatch) -> list[float]:
        return [1 / (len(text) - 2) for text in batch.response_texts]

    with pytest.raises(RunError) as caught:
        scorer((lambda b: [0.0] * len(b), 1.0), (fragile, 1.0)).score(rollout())
    text = str(caught.value)
    assert "reward 'r1' of type scripted (dist 1.0) raised ZeroDivisionError" in text
    assert "'no'" in text
    assert "'yes'" not in text
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


def test_providers_see_texts_ids_reasons_groups_and_a_reproducible_generator() -> None:
    seen: list[RewardBatch] = []
    for _ in range(2):
        scorer((lambda b: seen.append(b) or [0.0] * 3, 1.0)).score(rollout())
    batch = seen[0]
    assert list(batch.response_ids) == [[7, 2], [8], [9, 9, 2]]
    assert batch.response_lengths == [2, 1, 3]
    assert batch.prompt_texts == ["ask", "ask", "beg"]
    assert (batch.group_ids, batch.update) == ((0, 0, 1), 4)
    draws = [torch.rand(3, generator=b.generator) for b in seen]
    assert torch.equal(draws[0], draws[1])


def test_the_reference_is_sampled_once_for_all_providers() -> None:
    calls = []

    def reference(asked: Rollout) -> Rollout:
        calls.append(asked)
        return asked

    def ask(batch: RewardBatch) -> list[float]:
        assert batch.sample_reference is not None
        return [float(len(text)) for text in batch.sample_reference().response_texts]

    found = scorer((ask, 1.0), (ask, 1.0), sample_reference=reference).score(rollout())
    assert found.mix.tolist() == [6, 4, 10]
    assert len(calls) == 1


def test_a_wrapper_around_the_hook_changes_what_is_scored() -> None:
    class Doubling(HookPlugin[PluginConfig]):
        @hookimpl(wrapper=True)
        def rlframe_score(self, provider: Any, batch: Any) -> Any:
            scores = yield
            return [2 * score for score in scores]

    reward = WeightedReward(Instance("r", "scripted", Scripted(lambda b: [1.0, 2.0, 3.0])), 1.0)
    relay = Relay([Instance("twice", "doubling", Doubling(PluginConfig(), None))])
    found = RewardScorer([reward], relay, **ALONE).score(rollout())
    assert found.mix.tolist() == [2, 4, 6]


def test_a_wrapper_that_raises_is_blamed_and_not_the_reward_inside_it() -> None:
    class Broken(HookPlugin[PluginConfig]):
        @hookimpl(wrapper=True)
        def rlframe_score(self, provider: Any, batch: Any) -> Any:
            scores = yield
            raise KeyError("no such entry")
            return scores

    class Passing(HookPlugin[PluginConfig]):
        @hookimpl(wrapper=True)
        def rlframe_score(self, provider: Any, batch: Any) -> Any:
            return (yield)

    def run(plugin: Any, score: Any) -> str:
        reward = WeightedReward(Instance("r", "scripted (s 1)", Scripted(score)), 1.0)
        relay = Relay([Instance("w", "wrapper (w 2)", plugin(PluginConfig(), None))])
        with pytest.raises(RunError) as caught:
            RewardScorer([reward], relay, **ALONE).score(rollout())
        return str(caught.value).splitlines()[0].partition(" [")[0]  # its place

    def fails(batch: Any) -> Any:
        raise ValueError("bad text")

    assert run(Broken, lambda b: [1.0, 2.0, 3.0]) == (
        "hook plugin 'w' of type wrapper (w 2), around reward 'r' of type scripted (s 1) raised "
        "KeyError: 'no such entry'"
    )
    assert run(Passing, fails) == "reward 'r' of type scripted (s 1) raised ValueError: bad text"


def test_a_reward_that_hangs_ends_the_run_by_name_and_one_in_time_is_as_without_a_limit() -> None:
    def slow(batch: RewardBatch) -> list[float]:
        time.sleep(30)
        return [0.0] * len(batch)

    begun = time.monotonic()
    with pytest.raises(RunError, match=r"'r0' of type .* has not answered within 0.2 seconds"):
        scorer((slow, 1.0), time_limit_seconds=0.2).score(rollout())
    assert time.monotonic() - begun < 5

    def quick(batch: RewardBatch) -> list[float]:
        assert not torch.is_grad_enabled()
        return [1.0, 2.0, 3.0]

    assert scorer((quick, 1.0), time_limit_seconds=20).score(rollout()).mix.tolist() == [1, 2, 3]
    with pytest.raises(RunError, match="raised ZeroDivisionError"):
        scorer((lambda b: 1 / 0, 1.0), time_limit_seconds=20).score(rollout())


class Dear(Scripted):
    """As a paid service, nothing to be asked again about each response."""

    cheap_to_repeat = False


def scorer_of(provider: RewardProvider[Any], **settings: Any) -> RewardScorer:
    instance = Instance("dear", "dear (dist 1.0)", provider)
    return RewardScorer([WeightedReward(instance, 1.0, **settings)], Relay(), **ALONE)


@pytest.mark.parametrize("seconds", [None, 20.0])
def test_a_failed_batch_is_repeated_only_where_that_is_cheap(seconds: float | None) -> None:
    asked: list[int] = []

    def fails(batch: RewardBatch) -> Any:
        asked.append(len(batch))
        raise OSError("no credit left")

    with pytest.raises(RunError, match="raised OSError: no credit left") as caught:
        scorer_of(Dear(fails), time_limit_seconds=seconds).score(rollout())
    assert asked == [3]
    assert "Which of 3 responses it was is not known" in str(caught.value)
    assert "sample 0 of update 4" in str(caught.value)
    asked.clear()
    with pytest.raises(RunError, match="sample 0 of update 4"):
        scorer_of(Scripted(fails), time_limit_seconds=seconds).score(rollout())
    assert asked == [3, 2, 1]


def test_the_limit_holds_while_the_culprit_is_looked_for() -> None:
    calls: list[int] = []

    def slow_when_alone(batch: RewardBatch) -> Any:
        calls.append(len(batch))
        if len(calls) > 1:
            time.sleep(30)
        raise ValueError("bad text")

    begun = time.monotonic()
    with pytest.raises(RunError, match="raised ValueError: bad text") as caught:
        scorer_of(Scripted(slow_when_alone), time_limit_seconds=0.5).score(rollout())
    assert time.monotonic() - begun < 15
    assert calls == [3, 2]
    assert "The time was over before the response was found" in str(caught.value)


def test_wrappers_are_within_the_limit() -> None:
    class Retries(HookPlugin[PluginConfig]):
        @hookimpl(wrapper=True)
        def rlframe_score(self, provider: Any, batch: Any) -> Any:
            scores = yield
            time.sleep(30)
            return scores

    context: Any = None
    relay = Relay([Instance("retry", "retries", Retries(PluginConfig(), context))])
    provider = Scripted(lambda b: [0.0] * 3)
    reward = WeightedReward(Instance("r", "scripted", provider), 1.0, time_limit_seconds=0.2)
    with pytest.raises(RunError, match=r"has not answered within 0\.2 seconds"):
        RewardScorer([reward], relay, **ALONE).score(rollout())


def test_a_wrapper_is_named_beside_the_reward_whose_scores_it_changed() -> None:
    class Dicts(HookPlugin[PluginConfig]):
        @hookimpl(wrapper=True)
        def rlframe_score(self, provider: Any, batch: Any) -> Any:
            return dict(enumerate((yield)))

    context: Any = None
    relay = Relay([Instance("dicts", "dicts", Dicts(PluginConfig(), context))])
    reward = WeightedReward(Instance("r", "scripted", Scripted(lambda b: [0.0] * 3)), 1.0)
    with pytest.raises(RunError, match=r"\(with the hook plugin 'dicts' around it\) returned \{0:"):
        RewardScorer([reward], relay, **ALONE).score(rollout())


@pytest.mark.parametrize("answer", [{0: 1.0, 1: 2.0, 2: 3.0}, {1.0, 2.0, 3.0}, "abc"], ids=str)
def test_what_merely_has_the_right_length_is_refused(answer: Any) -> None:
    with pytest.raises(RunError, match=r"'r0' of type scripted.* returned .* for 3 responses"):
        scorer((lambda b: answer, 1.0)).score(rollout())


def test_a_weight_that_makes_a_score_infinite_is_refused() -> None:
    with pytest.raises(
        RunError, match=r"the mix is not finite.*'r0'.*weight of 1e\+30.*"
    ) as caught:
        scorer((lambda b: [0.0, 0.0, 1e20], 1e30)).score(rollout())
    assert "sample 2" in str(caught.value)


@pytest.mark.parametrize(
    ("joined", "why"),
    [
        (None, "returned None from `combine`"),
        (torch.zeros(3), "shape \\(3,\\) from `combine`"),
        (torch.zeros(3, 3, dtype=torch.float32), "from `combine`"),
        (torch.full((3, 3), math.nan, dtype=torch.float64), "the mix is not finite"),
    ],
    ids=["none", "rows", "float32", "nan"],
)
def test_what_combine_returns_is_held_against_the_contract(joined: Any, why: str) -> None:
    class Joins(Scripted):
        def combine(self, total: Any, values: Any, batch: Any) -> Any:
            return joined

    with pytest.raises(RunError, match=f"'dear' of type dear .*{why}|{why}.*'dear'"):
        scorer_of(Joins(lambda b: [0.0] * 3)).score(rollout())


def test_a_reward_of_weight_0_is_a_metric_alone_even_if_it_would_replace_others() -> None:
    from rlframe.builtin.eos_penalty import EosPenalty, EosPenaltyConfig

    context: Any = None
    penalty = EosPenalty(EosPenaltyConfig(penalty=4.0, mode="replace"), context)
    mix = [
        WeightedReward(Instance("r", "scripted", Scripted(lambda b: [1.0, 3.0, 5.0])), 1.0),
        WeightedReward(Instance("e", "eos", penalty), 0.0),
    ]
    found = RewardScorer(mix, Relay(), **ALONE).score(rollout())
    assert found.mix.tolist() == [1.0, 3.0, 5.0]
    assert found.raw["e"].tolist() == [0.0, -4.0, 0.0]


# Normalised by the scores so far


def in_turn(*scores: list[Any]) -> Any:
    """A provider that says this of the first rollout, that of the second, and so on."""
    left = list(scores)
    return lambda batch: left.pop(0)


def test_scores_are_divided_by_the_deviation_of_all_so_far() -> None:
    """1 3 5: std sqrt(8/3). With 7 7 7 besides: mean 5, std sqrt((16 + 4 + 0 + 3 * 4) / 6)."""
    asked = scorer((in_turn([1.0, 3.0, 5.0], [7.0] * 3), 2.0), normalize="scale")
    first, second = asked.score(rollout()), asked.score(rollout())
    one, two = math.sqrt(8 / 3), math.sqrt(32 / 6)
    assert first.mix.tolist() == pytest.approx([2 / one, 6 / one, 10 / one])
    assert second.mix.tolist() == pytest.approx([14 / two] * 3)
    assert second.weighted["r0"].tolist() == second.mix.tolist()
    assert second.raw["r0"].tolist() == [7.0] * 3
    assert (first.running["r0"].std, second.running["r0"].std) == pytest.approx((one, two))
    assert (first.running["r0"].mean, second.running["r0"].mean) == pytest.approx((3, 5))


def test_standardized_scores_lose_the_mean_of_all_so_far() -> None:
    asked = scorer((in_turn([1.0, 3.0, 5.0], [7.0] * 3), -1.0), normalize="standardize")
    one, two = math.sqrt(8 / 3), math.sqrt(32 / 6)
    assert asked.score(rollout()).mix.tolist() == pytest.approx([2 / one, 0, -2 / one])
    found = asked.score(rollout())
    assert found.rewards[0].tolist() == pytest.approx([0, -2 / two, 0])
    assert found.mix.tolist() == pytest.approx([-2 / two] * 3)


def test_a_row_of_token_rewards_counts_as_its_sum() -> None:
    rows = [[1.0, 2.0], [1.0], [0.0, 2.0, 3.0]]  # scores 3, 1, 5
    std = math.sqrt(8 / 3)
    found = scorer((lambda b: rows, 1.0), normalize="scale").score(rollout())
    assert found.rewards[2].tolist() == pytest.approx([0, 2 / std, 3 / std])
    found = scorer((lambda b: rows, 1.0), normalize="standardize").score(rollout())
    assert found.rewards[2].tolist() == pytest.approx([0, 2 / std, 0])
    assert found.mix.tolist() == pytest.approx([0, -2 / std, 2 / std])
    assert found.running["r0"].mean == pytest.approx(3)


def test_an_evaluation_on_held_out_prompts_is_not_normalised_and_leaves_the_statistics() -> None:
    asked = scorer((in_turn([9.0] * 3, [1.0, 3.0, 5.0], [9.0] * 3), 2.0), normalize="standardize")
    assert asked.heldout(rollout()).mix.tolist() == [18.0] * 3
    asked.score(rollout())
    before = asked.state_dict()
    assert (
        asked.heldout(rollout()).mix.tolist() == [18.0] * 3
    )  # as before: evaluations are compared
    assert asked.state_dict() == before


def test_statistics_go_on_after_a_save_and_a_load() -> None:
    import json

    answers = ([1.0, 3.0, 5.0], [0.1, 7.0, 7.3], [2.0, 2.5, 9.0])
    calm = scorer((in_turn(*answers), 1.0), normalize="standardize")
    expected = [calm.score(rollout()) for _ in answers][-1]
    first = scorer((in_turn(*answers[:2]), 1.0), normalize="standardize")
    for _ in range(2):
        first.score(rollout())
    again = scorer((in_turn(answers[2]), 1.0), normalize="standardize")
    again.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert again.score(rollout()).mix.tolist() == expected.mix.tolist()
    assert again.state_dict() == calm.state_dict()


def test_rewards_that_are_not_normalised_have_no_statistics() -> None:
    asked = scorer((lambda b: [1.0, 2.0, 3.0], 1.0))
    assert asked.score(rollout()).running == {}
    assert asked.state_dict() == {}
    asked.load_state_dict({"gone": [3, 1.0, 2.0]})
    assert asked.state_dict() == {}


def test_a_penalty_that_replaces_takes_the_place_of_normalised_scores() -> None:
    from rlframe.builtin.eos_penalty import EosPenalty, EosPenaltyConfig

    config = EosPenaltyConfig(penalty=4.0, mode="replace")
    mix = [
        WeightedReward(
            Instance("r", "scripted", Scripted(lambda b: [1.0, 3.0, 5.0])), 1.0, None, "standardize"
        ),
        WeightedReward(Instance("e", "eos", EosPenalty(config, None)), 1.0),  # type: ignore[arg-type]
    ]
    found = RewardScorer(mix, Relay(), **ALONE).score(rollout())
    std = math.sqrt(8 / 3)
    assert found.mix.tolist() == pytest.approx([-2 / std, -4, 2 / std])
