from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from rlframe_reward_cache import RewardCache

from rlframe.api import (
    ContractError,
    Needs,
    PluginConfig,
    Prompt,
    RewardBatch,
    RewardProvider,
    StopReason,
    hookimpl,
)
from rlframe.api.spec import plugin_manager
from rlframe.errors import RecipeError
from rlframe.recipe import load_recipe
from rlframe.runs.trees import load_tree, save_tree

CONTEXT: Any = None  # nothing of it is used


class CountingConfig(PluginConfig):
    factor: float = 1.0


class Counting(RewardProvider[CountingConfig]):
    """The length of a response, and what it was asked about."""

    def __init__(self, name: str = "length", factor: float = 1.0) -> None:
        super().__init__(CountingConfig(factor=factor), CONTEXT)
        self.name, self.asked = name, list[list[str]]()

    def score(self, batch: RewardBatch) -> Sequence[float | Sequence[float] | None]:
        self.asked.append(list(batch.response_texts))
        return [len(text) * self.config.factor for text in batch.response_texts]


def batch(
    *texts: str, prompt: str = "?", reason: StopReason = StopReason.EOS, **columns: Any
) -> RewardBatch:
    return RewardBatch(
        prompts=[Prompt(prompt, (1,), columns)] * len(texts),
        response_texts=texts,
        response_ids=[tuple(text.encode()) for text in texts],
        stop_reasons=[reason] * len(texts),
        group_ids=range(len(texts)),
        update=0,
        generator=torch.Generator(),
    )


def cache(**keys: Any) -> RewardCache:
    return RewardCache(RewardCache.Config.model_validate({"rewards": ["length"], **keys}), CONTEXT)


def hooks(*plugins: object) -> Any:
    manager = plugin_manager()
    for plugin in plugins:
        manager.register(plugin)
    manager.check_pending()
    return manager.hook


def test_only_responses_that_were_not_judged_are_asked_about_and_equal_ones_once() -> None:
    plugin, length = cache(), Counting()
    hook = hooks(plugin)
    assert hook.rlframe_score(provider=length, batch=batch("a", "bb", "a")) == [1, 2, 1]
    assert hook.rlframe_score(provider=length, batch=batch("bb", "ccc", "a")) == [2, 3, 1]
    assert length.asked == [["a", "bb"], ["ccc"]]
    assert (plugin.hits, plugin.misses) == (3, 3)


def test_a_batch_that_is_known_does_not_reach_the_reward() -> None:
    hook, length = hooks(cache()), Counting()
    both = [hook.rlframe_score(provider=length, batch=batch("a", "bb")) for _ in range(2)]
    assert both[0] == both[1]
    assert len(length.asked) == 1


def test_a_reward_that_is_not_listed_is_asked_every_time() -> None:
    hook, other = hooks(cache()), Counting("other")
    hook.rlframe_score(provider=Counting(), batch=batch("a"))
    for _ in range(2):
        assert hook.rlframe_score(provider=other, batch=batch("a", "a")) == [1, 1]
    assert other.asked == [["a", "a"]] * 2


@pytest.mark.parametrize(
    "other",
    [
        batch("a", prompt="!"),
        batch("a", answer=3),
        batch("a", reason=StopReason.LENGTH),
        batch("b"),
    ],
)
def test_another_question_ending_or_response_is_another_judgement(other: RewardBatch) -> None:
    hook, length = hooks(cache()), Counting()
    hook.rlframe_score(provider=length, batch=batch("a"))
    hook.rlframe_score(provider=length, batch=other)
    assert len(length.asked) == 2


def test_log_probabilities_are_a_part_of_the_question_for_a_reward_that_needs_them() -> None:
    class Sure(Counting):
        @classmethod
        def needs(cls, config: PluginConfig) -> Needs:
            return Needs(logprobs=True)

    for provider, asked in ((Sure(), 2), (Counting(), 1)):
        hook = hooks(cache())
        for logprob in (-1.0, -1.0, -2.0):
            given = replace(batch("a"), logprobs=[[logprob]])
            hook.rlframe_score(provider=provider, batch=given)
        assert len(provider.asked) == asked


def test_two_configs_do_not_share_scores_and_equal_ones_do() -> None:
    hook = hooks(cache(rewards=["one", "two", "three"]))
    providers = [Counting("one"), Counting("two", factor=2), Counting("three")]
    found = [hook.rlframe_score(provider=p, batch=batch("a")) for p in providers]
    assert found == [[1], [2], [1]]
    assert [len(p.asked) for p in providers] == [1, 1, 0]


def test_what_was_longest_unused_goes_first_and_no_more_are_kept_than_asked() -> None:
    plugin, length = cache(size=2), Counting()
    hook = hooks(plugin)
    for text in ("a", "b", "a", "c", "a", "b"):
        hook.rlframe_score(provider=length, batch=batch(text))
    assert length.asked == [["a"], ["b"], ["c"], ["b"]]
    assert len(plugin.state_dict()["scores"]) == 2
    assert hook.rlframe_score(provider=length, batch=batch("x", "y", "z", "x")) == [1] * 4


def test_a_state_that_went_through_a_checkpoint_knows_what_the_plugin_knew(tmp_path: Path) -> None:
    before, after, length = cache(), cache(), Counting()
    hooks(before).rlframe_score(provider=length, batch=batch("a", "bb"))
    save_tree(tmp_path / "state", before.state_dict())
    after.load_state_dict(load_tree(tmp_path / "state"))
    assert hooks(after).rlframe_score(provider=length, batch=batch("bb", "a")) == [2, 1]
    assert (len(length.asked), after.hits, after.misses) == (1, 2, 2)


class Scripted(Counting):
    """Returns what a test says."""

    def __init__(self, *answers: Any) -> None:
        super().__init__()
        self.answers = list(answers)

    def score(self, batch: RewardBatch) -> Any:
        return self.answers.pop(0)


def test_no_judgement_is_handed_on_and_not_remembered() -> None:
    hook, judge = hooks(cache()), Scripted([None], [4.0])
    assert hook.rlframe_score(provider=judge, batch=batch("a")) == [None]
    assert hook.rlframe_score(provider=judge, batch=batch("a")) == [4.0]


def test_tensors_and_rows_of_token_rewards_are_remembered_as_plain_numbers() -> None:
    plugin = cache()
    judge = Scripted(torch.tensor([1.0, 2.0]), [[0.5, 0.25]])
    hook = hooks(plugin)
    assert hook.rlframe_score(provider=judge, batch=batch("a", "b")) == [1.0, 2.0]
    assert hook.rlframe_score(provider=judge, batch=batch("cc")) == [[0.5, 0.25]]
    json.dumps(plugin.state_dict())


def test_a_wrong_number_of_values_is_an_error_and_what_a_reward_raises_comes_through() -> None:
    hook = hooks(cache())
    for answer in ([1.0], {"a": 1.0, "b": 2.0}, {1.0, 2.0}):
        with pytest.raises(ContractError, match=r"the reward .* returned .* for 2 responses"):
            hook.rlframe_score(provider=Scripted(answer), batch=batch("a", "b"))
    with pytest.raises(IndexError):
        hook.rlframe_score(provider=Scripted(), batch=batch("a"))


def test_a_name_that_no_reward_has_is_told_with_the_recipe() -> None:
    recipe = Path(__file__).parent.parent / "recipe.yaml"
    with pytest.raises(RecipeError, match=r"rewards\.0: there is no reward 'lenght'\. "):
        load_recipe(recipe, ["hooks.cache.rewards=[lenght]"])


@pytest.mark.parametrize("cache_first", [True, False])
def test_wrappers_of_other_plugins_stay_around_the_cache(cache_first: bool) -> None:
    class Doubling:
        @hookimpl(wrapper=True)
        def rlframe_score(self, batch: RewardBatch) -> Any:
            scores = yield
            return [2 * score for score in scores]

    plugins: list[object] = [cache(), Doubling()]
    hook, length = hooks(*(plugins if cache_first else plugins[1:] + plugins[:1])), Counting()
    for _ in range(2):  # what a wrapper makes of the scores is not what is remembered
        assert hook.rlframe_score(provider=length, batch=batch("a", "bb")) == [2, 4]
    assert len(length.asked) == 1


@pytest.mark.parametrize("keys", [{"rewards": []}, {"size": 0}, {"ttl": 3}])
def test_what_could_not_cache_is_refused(keys: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        cache(**keys)


def test_the_recipe_names_this_plugin() -> None:
    loaded = load_recipe(Path(__file__).parent.parent / "recipe.yaml")
    assert loaded.chosen["hooks", "cache"].component is RewardCache
