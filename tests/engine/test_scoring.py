from __future__ import annotations

import itertools
import json
import math
import time
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from rlframe.api import (
    HookPlugin,
    PluginConfig,
    Prompt,
    RewardBatch,
    RewardProvider,
    RewardTransform,
    ScoreBatch,
    StopReason,
    hookimpl,
)
from rlframe.api.component import Instance
from rlframe.api.events import ScoredResponse
from rlframe.builtin.reward_transforms import ClipReward, RunningScale, RunningStandardize
from rlframe.engine.scoring import RewardScorer, Scores, WeightedReward
from rlframe.errors import RunError
from rlframe.registry.relay import Relay
from rlframe.rollout.packing import pack
from rlframe.types import Rollout
from tests.playing import part


class Scripted(RewardProvider[PluginConfig]):
    """Scores by a function of the batch."""

    cheap_to_repeat = True

    def __init__(self, answer: Any) -> None:
        super().__init__(PluginConfig(), None)  # type: ignore[arg-type]
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
    transforms: tuple[Any, ...] = (),
    **kwargs: Any,
) -> RewardScorer:
    mix = [
        WeightedReward(
            Instance(f"r{i}", f"scripted (dist {i}.0)", Scripted(answer)),
            weight,
            time_limit_seconds,
            transforms,
        )
        for i, (answer, weight) in enumerate(rewards)
    ]
    return RewardScorer(mix, Relay(), **{**ALONE, **kwargs})


def processes(**changed: Any) -> Any:
    """One process, or what stands for several."""
    return SimpleNamespace(**{"sum": lambda x: x, "gather": lambda x: [x], "rank": 0, **changed})


ALONE: Any = {"sample_reference": None, "runtime": processes(), "updates": 9, "seed": 0}


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


@pytest.mark.parametrize("bad", [math.nan, math.inf, "0.5", [1.0], [1.0, math.nan, 2.0]], ids=str)
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


def test_responses_have_the_mix_and_what_each_reward_said_of_them() -> None:
    found = scorer((lambda b: [1.0, None, 3.0], 2.0), (lambda b: [None, None, 4.0], -0.5))
    responses = found.score(rollout()).responses(rollout())
    assert responses[0] == ScoredResponse(
        sample=0,
        group=0,
        prompt="ask",
        response="yes",
        stop_reason=StopReason.EOS,
        score=2.0,
        rewards={"r0": 1.0, "r1": None},
    )
    assert [(one.score, one.rewards) for one in responses[1:]] == [
        (None, {"r0": None, "r1": None}),
        (4.0, {"r0": 3.0, "r1": 4.0}),
    ]


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
        "hook plugin 'w' of type wrapper (w 2), around reward 'r' of type scripted (s 1), raised "
        "KeyError in `rlframe_score`: 'no such entry'"
    )
    assert (
        run(Passing, fails)
        == "reward 'r' of type scripted (s 1) raised ValueError in `score`: bad text"
    )


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

    with pytest.raises(RunError, match="raised OSError in `score`: no credit left") as caught:
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
    with pytest.raises(RunError, match="raised ValueError in `score`: bad text") as caught:
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


class Gate(Scripted):
    """A reward with a gate, which answers what it was given."""

    def __init__(self, factors: Any, answer: Any = lambda b: [10.0, 20.0, 30.0]) -> None:
        super().__init__(answer)
        self.factors = factors

    def gate(self, batch: RewardBatch) -> Any:
        return self.factors


def gated(*rewards: tuple[str, Any, float, Any]) -> Scores:
    """What (name, component, weight, gates) come to."""
    mix = [
        WeightedReward(Instance(name, f"{name} (dist 1.0)", component), weight, gates=gates)
        for name, component, weight, gates in rewards
    ]
    return RewardScorer(mix, Relay(), **ALONE).score(rollout())


PLAIN = ("plain", Scripted(lambda b: [1.0, 2.0, 3.0]), 2.0, None)
OTHER = ("other", Scripted(lambda b: [[5.0, 7.0], 1.0, 0.0]), 1.0, None)
HALF = ("half", Gate([1.0, 0.5, 0.0]), 0.1, None)


def test_a_gate_multiplies_every_reward_without_a_gate_and_not_itself() -> None:
    found = gated(PLAIN, HALF, OTHER)
    assert found.mix.tolist() == pytest.approx([2 + 12 + 1, 2 + 0.5 + 2, 0 + 0 + 3])
    assert found.rewards[0].tolist() == pytest.approx([5, 2 + 7 + 1, 0])
    assert found.weighted["plain"].tolist() == [2, 2, 0]
    assert found.raw["plain"].tolist() == [1, 2, 3]


def test_the_order_of_rewards_changes_nothing() -> None:
    orders = itertools.permutations((PLAIN, HALF, OTHER, ("no", Gate([0.5] * 3), 1.0, None)))
    found = [gated(*order).mix.tolist() for order in orders]
    assert all(mix == pytest.approx(found[0], rel=1e-15) for mix in found)


def test_a_gate_acts_on_the_rewards_that_it_names_and_several_multiply() -> None:
    mine = ("mine", Gate([0.5, 0.5, 0.5], lambda b: [0.0] * 3), 1.0, ("plain", "half"))
    found = gated(PLAIN, HALF, OTHER, mine)
    assert found.mix.tolist() == pytest.approx([1 + 12 + 0.5, 1 + 0.5 + 1, 0 + 0 + 1.5])


def test_a_reward_that_cannot_say_whether_it_has_a_gate_is_named() -> None:
    class Unsure(Gate):
        @classmethod
        def has_gate(cls, config: Any) -> bool:
            raise KeyError("mode")

    with pytest.raises(RunError, match=r"reward 'half' of type half .*raised KeyError"):
        gated(PLAIN, ("half", Unsure([1.0] * 3), 1.0, None))


def test_a_gate_that_answers_none_is_none() -> None:
    assert gated(PLAIN, ("half", Gate(None), 0.1, None)).mix.tolist() == pytest.approx([3, 6, 9])


@pytest.mark.parametrize(
    ("factors", "why"),
    [
        ([1.0, 0.5], "returned 2 values for 3 responses"),
        ([1.0, 1.5, 0.0], "returned 1.5 from `gate`; it must be from 0 to 1.*sample 1"),
        ([1.0, -0.5, 0.0], "returned -0.5 from `gate`"),
        ([1.0, math.nan, 0.0], "returned nan"),
        (0.5, "returned 0.5 for 3 responses"),
    ],
    ids=str,
)
def test_what_a_gate_returns_is_held_against_the_contract(factors: Any, why: str) -> None:
    with pytest.raises(RunError, match=rf"(?s)reward 'half' of type half.*{why}"):
        gated(PLAIN, ("half", Gate(factors), 1.0, None))


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


# Transforms


SCALE = part("r0.transforms.0", RunningScale)
STANDARDIZE = part("r0.transforms.0", RunningStandardize)


def in_turn(*scores: list[Any]) -> Any:
    """A provider that says this of the first rollout, that of the second, and so on."""
    left = list(scores)
    return lambda batch: left.pop(0)


def test_scores_are_divided_by_the_deviation_of_all_so_far() -> None:
    """1 3 5: std sqrt(8/3). With 7 7 7 besides: mean 5, std sqrt((16 + 4 + 0 + 3 * 4) / 6)."""
    asked = scorer((in_turn([1.0, 3.0, 5.0], [7.0] * 3), 2.0), transforms=(SCALE,))
    first, second = asked.score(rollout()), asked.score(rollout())
    one, two = math.sqrt(8 / 3), math.sqrt(32 / 6)
    assert first.mix.tolist() == pytest.approx([2 / one, 6 / one, 10 / one])
    assert second.mix.tolist() == pytest.approx([14 / two] * 3)
    assert second.weighted["r0"].tolist() == second.mix.tolist()
    assert second.raw["r0"].tolist() == [7.0] * 3
    assert first.metrics == pytest.approx({"r0/running_std": one, "r0/running_mean": 3})
    assert second.metrics == pytest.approx({"r0/running_std": two, "r0/running_mean": 5})
    assert second.untransformed.tolist() == [14.0] * 3


def test_standardized_scores_lose_the_mean_of_all_so_far() -> None:
    asked = scorer((in_turn([1.0, 3.0, 5.0], [7.0] * 3), -1.0), transforms=(STANDARDIZE,))
    one, two = math.sqrt(8 / 3), math.sqrt(32 / 6)
    assert asked.score(rollout()).mix.tolist() == pytest.approx([2 / one, 0, -2 / one])
    found = asked.score(rollout())
    assert found.rewards[0].tolist() == pytest.approx([0, -2 / two, 0])
    assert found.mix.tolist() == pytest.approx([-2 / two] * 3)


def test_a_row_of_token_rewards_counts_as_its_sum() -> None:
    rows = [[1.0, 2.0], [1.0], [0.0, 2.0, 3.0]]  # scores 3, 1, 5
    std = math.sqrt(8 / 3)
    found = scorer((lambda b: rows, 1.0), transforms=(SCALE,)).score(rollout())
    assert found.rewards[2].tolist() == pytest.approx([0, 2 / std, 3 / std])
    found = scorer((lambda b: rows, 1.0), transforms=(STANDARDIZE,)).score(rollout())
    assert found.rewards[2].tolist() == pytest.approx([0, 2 / std, 0])
    assert found.mix.tolist() == pytest.approx([0, -2 / std, 2 / std])
    assert found.metrics["r0/running_mean"] == pytest.approx(3)


def test_an_evaluation_on_held_out_prompts_is_not_transformed_and_leaves_the_statistics() -> None:
    asked = scorer((in_turn([9.0] * 3, [1.0, 3.0, 5.0], [9.0] * 3), 2.0), transforms=(STANDARDIZE,))
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
    calm = scorer((in_turn(*answers), 1.0), transforms=(STANDARDIZE,))
    expected = [calm.score(rollout()) for _ in answers][-1]
    first = scorer((in_turn(*answers[:2]), 1.0), transforms=(STANDARDIZE,))
    for _ in range(2):
        first.score(rollout())
    again = scorer((in_turn(answers[2]), 1.0), transforms=(STANDARDIZE,))
    again.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert again.score(rollout()).mix.tolist() == expected.mix.tolist()
    assert again.state_dict() == calm.state_dict()


def test_rewards_without_transforms_have_no_state() -> None:
    asked = scorer((lambda b: [1.0, 2.0, 3.0], 1.0))
    assert asked.score(rollout()).metrics == {}
    assert asked.state_dict() == {}
    asked.load_state_dict({"gone": [{"number": 3}]})
    assert asked.state_dict() == {}


def test_a_penalty_that_replaces_takes_the_place_of_transformed_scores() -> None:
    from rlframe.builtin.eos_penalty import EosPenalty, EosPenaltyConfig

    config = EosPenaltyConfig(penalty=4.0, mode="replace")
    mix = [
        WeightedReward(
            Instance("r", "scripted", Scripted(lambda b: [1.0, 3.0, 5.0])),
            1.0,
            None,
            (STANDARDIZE,),
        ),
        WeightedReward(Instance("e", "eos", EosPenalty(config, None)), 1.0),  # type: ignore[arg-type]
    ]
    found = RewardScorer(mix, Relay(), **ALONE).score(rollout())
    std = math.sqrt(8 / 3)
    assert found.mix.tolist() == pytest.approx([-2 / std, -4, 2 / std])


def test_a_chain_is_applied_in_its_order_before_the_weight() -> None:
    """Clipped to 4, then divided by the deviation of what was clipped: 1, 3, 4, std sqrt(14 / 9)."""
    clip = part("r0.transforms.0", ClipReward, limit=4.0)
    scale = part("r0.transforms.1", RunningScale)
    found = scorer((lambda b: [1.0, 3.0, 5.0], 2.0), transforms=(clip, scale)).score(rollout())
    std = math.sqrt(14 / 9)
    assert found.mix.tolist() == pytest.approx([2 / std, 6 / std, 8 / std])
    other = scorer((lambda b: [1.0, 3.0, 5.0], 2.0), transforms=(scale, clip)).score(rollout())
    assert other.mix.tolist() == pytest.approx([x / math.sqrt(8 / 3) for x in (2, 6, 10)])


class Mine(RewardTransform[PluginConfig]):
    """Answers what it was made with."""

    def __init__(self, answer: Any, first: Any = None) -> None:
        super().__init__(PluginConfig(), None)  # type: ignore[arg-type]
        self.answer, self.first = answer, {} if first is None else first

    def initial(self) -> Any:
        return self.first

    def apply(self, state: Any, scores: ScoreBatch) -> Any:
        return self.answer(state, scores)


def transformed_by(answer: Any, first: Any = None, **kwargs: Any) -> Scores:
    mine = Instance("r0.transforms.0", "mine (dist 1.0)", Mine(answer, first))
    return scorer((lambda b: [1.0, 3.0, 5.0], 1.0), transforms=(mine,), **kwargs).score(rollout())


def test_a_transform_is_told_of_all_ranks_and_of_the_place_in_the_run() -> None:
    seen = []

    def answer(state: Any, scores: ScoreBatch) -> Any:
        seen.append(scores)
        return state, torch.ones_like(scores.totals), torch.zeros_like(scores.totals)

    transformed_by(
        answer, runtime=processes(sum=lambda x: 2 * x)
    )  # as if another rank had seen the same
    (scores,) = seen
    assert scores.moments == pytest.approx((6, 3.0, 16.0))
    assert scores.totals.tolist() == [1, 3, 5]
    assert scores.valid.all()
    assert scores.group_ids.tolist() == [0, 0, 1]
    assert (scores.update, scores.updates) == (4, 9)


class Telling(Mine):
    """Tells what it was made with."""

    def metrics(self, state: Any) -> Any:
        return self.first

    def initial(self) -> Any:
        return {}


@pytest.mark.parametrize(
    ("message", "why"),
    [
        ([1.0], r"returned \[1.0\]; it must be a mapping"),
        ({"mean": math.nan}, "returned 'mean': nan, which is no finite number"),
        ({"mean": torch.ones(2)}, "'mean': .*which is no finite number"),
        ({3: 1.0}, "returned 3: 1.0"),
        ({"mean": True}, "'mean': True"),
    ],
    ids=["list", "nan", "tensor", "name", "bool"],
)
def test_metrics_of_a_transform_are_names_and_finite_numbers(message: Any, why: str) -> None:
    def unchanged(state: Any, scores: ScoreBatch) -> Any:
        return state, torch.ones_like(scores.totals), torch.zeros_like(scores.totals)

    mine = Instance("r0.transforms.0", "mine (dist 1.0)", Telling(unchanged, message))
    with pytest.raises(RunError, match=rf"'r0.transforms.0' of type mine.*{why}.*`metrics`"):
        scorer((lambda b: [1.0, 3.0, 5.0], 1.0), transforms=(mine,)).score(rollout())


ONES = torch.ones(3, dtype=torch.float64)


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (lambda s, b: None, "returned None; it must return"),
        (lambda s, b: (ONES, ONES), r"must return \(state, scale, shift\)"),
        (lambda s, b: (s, ONES, 0.0), "returned 0.0 as shift; it must be a tensor of shape"),
        (lambda s, b: (s, ONES[:2], ONES), "as scale; it must be a tensor of shape"),
        (lambda s, b: (s, ONES.float(), ONES), "scale in torch.float32"),
        (lambda s, b: (s, ONES / 0, ONES), "a scale of inf for a total of 1.*sample 0"),
        (lambda s, b: (s, ONES, b.totals.log().masked_fill(b.totals == 3, math.nan)), "sample 1"),
        (lambda s, b: ({"n": math.nan}, ONES, ONES), "a state that JSON cannot hold"),
        (lambda s, b: ({"n": ONES}, ONES, ONES), "a state that JSON cannot hold"),
        (lambda s, b: ({"n": (1, 2)}, ONES, ONES), "JSON does not give back"),
        (lambda s, b: ({1: 2}, ONES, ONES), "JSON does not give back"),
        (lambda s, b: (s.update(n=1) or s, ONES, ONES), "changed state, which it was given"),
        (lambda s, b: (s, b.totals.mul_(2), ONES), "changed scores.totals, which it was given"),
        (lambda s, b: 1 / 0, "raised ZeroDivisionError"),
    ],
    ids=range(14),
)
def test_what_a_transform_returns_is_held_against_the_contract(answer: Any, why: str) -> None:
    with pytest.raises(
        RunError, match=rf"(?s)reward transform 'r0.transforms.0' of type mine.*{why}"
    ):
        transformed_by(answer)


def test_a_first_state_that_json_cannot_hold_is_refused() -> None:
    with pytest.raises(RunError, match=r"has a state that JSON cannot hold.*`initial`"):
        transformed_by(lambda s, b: (s, ONES, ONES), first={"n": ONES})


def test_the_order_of_names_in_a_state_is_no_difference_between_ranks() -> None:
    def answer(state: Any, scores: ScoreBatch) -> Any:
        return {"b": 1, "a": 2}, ONES, 0 * ONES

    def gather(mine: Any) -> list[Any]:
        return [
            mine,
            json.dumps(json.loads(mine), sort_keys=True) if isinstance(mine, str) else mine,
        ]

    found = transformed_by(answer, runtime=processes(gather=gather))
    assert found.mix.tolist() == [1, 3, 5]


def test_a_transform_whose_state_differs_between_ranks_ends_the_run() -> None:
    def answer(state: Any, scores: ScoreBatch) -> Any:
        return {"n": 1}, ONES, 0 * ONES

    with pytest.raises(RunError, match=r"differs between ranks: its state is \{'n': 2\} on rank 1"):
        transformed_by(answer, runtime=processes(gather=lambda x: [x, x.replace("1", "2")]))


def test_what_was_saved_does_not_change_with_what_is_scored_later() -> None:
    asked = scorer((lambda b: [1.0, 2.0, 3.0], 1.0), transforms=(SCALE,))
    saved = asked.state_dict()
    asked.score(rollout())
    assert saved == {"r0": [SCALE.component.initial()]}


def test_a_state_of_another_chain_is_not_taken_back() -> None:
    asked = scorer((lambda b: [1.0, 2.0, 3.0], 1.0), transforms=(SCALE,))
    fresh = asked.state_dict()
    asked.load_state_dict({"r0": []})
    assert asked.state_dict() == fresh


# None: a reward that cannot judge


def judged(*rewards: tuple[list[Any], dict[str, Any]]) -> Any:
    """What a mix makes of given answers; the keys of each reward are those of `WeightedReward`."""
    mix = [
        WeightedReward(
            Instance(f"r{i}", "scripted", Scripted(lambda _, answer=answer: answer)),
            **{"weight": 1.0, **keys},
        )
        for i, (answer, keys) in enumerate(rewards)
    ]
    return RewardScorer(mix, Relay(), **ALONE).score(rollout())


def test_a_reward_that_returns_none_adds_nothing_and_the_others_count() -> None:
    found = judged(([1.0, None, 3.0], {"weight": 2.0}), ([0.5, 0.5, None], {}))
    assert found.mix.tolist() == [2.5, 0.5, 6.0]
    assert found.valid.tolist() == [True, True, True]
    assert found.weighted["r0"].tolist() == [2, 0, 6]
    assert found.raw["r0"].isnan().tolist() == [False, True, False]
    assert found.raw["r1"][:2].tolist() == [0.5, 0.5]


def test_a_response_that_no_reward_judges_is_invalid_and_0_in_every_sum() -> None:
    found = judged(([1.0, None, 3.0], {}), ([0.5, None, None], {}))
    assert found.valid.tolist() == [True, False, True]
    assert found.mix.tolist() == [1.5, 0, 3]
    assert found.untransformed.tolist() == [1.5, 0, 3]


def test_a_reward_that_says_so_makes_its_none_count_for_the_whole_response() -> None:
    found = judged(([1.0, None, 3.0], {"on_none": "invalid"}), ([0.5, 7.0, None], {}))
    assert found.valid.tolist() == [True, False, True]
    assert found.mix.tolist() == [1.5, 0, 3]
    assert found.weighted["r1"].tolist() == [0.5, 0, 0]
    assert found.raw["r1"][:2].tolist() == [0.5, 7.0]  # what it said is still logged


def test_a_reward_of_weight_0_neither_saves_a_response_nor_leaves_it_out() -> None:
    metric = {"weight": 0.0, "on_none": "invalid"}
    found = judged(([1.0, None, 3.0], {}), ([None, 1.0, 1.0], metric))
    assert found.valid.tolist() == [True, False, True]


def test_a_reward_whose_purpose_is_to_leave_out_judges_nothing() -> None:
    """Its 0 for a finished response does not stand in for a reward that could not judge it."""
    from rlframe.builtin.eos_penalty import EosPenalty, EosPenaltyConfig

    eos = EosPenalty(EosPenaltyConfig(mode="mask"), None)  # type: ignore[arg-type]
    mix = [
        WeightedReward(Instance("r", "scripted", Scripted(lambda _: [None, 5.0, 3.0])), 1.0),
        WeightedReward(Instance("e", "eos", eos), 1.0),
    ]
    found = RewardScorer(mix, Relay(), **ALONE).score(rollout())  # the second was cut
    assert found.valid.tolist() == [False, False, True]
    assert found.mix.tolist() == [0, 0, 3]


def test_transforms_neither_see_nor_change_what_is_not_judged_or_left_out() -> None:
    """The deviation of 1 and 3 is 1; of 1, 3 and 100, or of 1, 3 and 0, it is another."""
    standardize = (Instance("t", "running_standardize", RunningStandardize(PluginConfig(), None)),)  # type: ignore[arg-type]
    none = judged(([1.0, None, 3.0], {"transforms": standardize}), ([0.0, 0.0, 0.0], {}))
    assert none.mix.tolist() == [-1, 0, 1]
    left_out = judged(
        ([1.0, 100.0, 3.0], {"transforms": standardize}),
        ([0.0, None, 0.0], {"on_none": "invalid"}),
    )
    assert left_out.mix.tolist() == [-1, 0, 1]
    assert left_out.metrics == {"r0/running_mean": 2.0, "r0/running_std": 1.0}


def test_held_out_responses_are_left_out_alike() -> None:
    found = scorer((lambda _: [1.0, None, 3.0], 1.0)).heldout(rollout())
    assert found.valid.tolist() == [True, False, True]
