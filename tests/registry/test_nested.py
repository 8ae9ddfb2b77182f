"""Rewards inside of others: wrapped, named after their place, and otherwise themselves."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rlframe.api import (
    HookPlugin,
    PluginConfig,
    RewardBatch,
    RewardProvider,
    RewardSpec,
    hookimpl,
)
from rlframe.api.component import Instance
from rlframe.compose.project import Project
from rlframe.recipe import load_recipe
from rlframe.registry.discovery import Registry
from rlframe.registry.nested import NestedReward
from rlframe.registry.relay import Relay
from rlframe.testing.world import reward_batch, tiny_context


class Both(PluginConfig):
    first: RewardSpec
    second: RewardSpec


class Sum(RewardProvider[Both]):
    """The sum of two other rewards."""

    def __init__(self, config: Both, context: Any) -> None:
        super().__init__(config, context)
        self.parts = [context.build_reward(spec) for spec in (config.second, config.first)]

    def score(self, batch: RewardBatch) -> list[float]:
        return [sum(pair) for pair in zip(*(part.score(batch) for part in self.parts), strict=True)]


class Doubles(HookPlugin[PluginConfig]):
    """Notes whom it wraps, and doubles what regex says."""

    def __init__(self) -> None:
        super().__init__(PluginConfig(), None)  # type: ignore[arg-type]
        self.seen: list[str] = []

    @hookimpl(wrapper=True)
    def rlframe_score(self, provider: Any, batch: Any) -> Any:
        self.seen.append(provider.name)
        scores = yield
        return [2 * x for x in scores] if type(provider).__name__ == "Regex" else scores


WITH_E, WITH_O = ({"type": "regex", "pattern": letter} for letter in "eo")
LENGTH = {"type": "length", "target_tokens": 4}


@pytest.fixture
def project(tiny_recipe: Callable[..., Path], tmp_path: Path) -> Project:
    registry = Registry()
    registry.add("reward_providers", "sum", Sum)
    inner = {"type": "sum", "first": WITH_E, "second": WITH_O}
    recipe = tiny_recipe(rewards={"all": {"type": "sum", "first": inner, "second": LENGTH}})
    return Project(load_recipe(recipe, registry=registry), tmp_path, registry)


def test_a_wrapper_sees_every_reward_under_the_name_of_its_place(project: Project) -> None:
    plugin = Doubles()
    reward = project.instance("rewards", "all")
    batch = reward_batch(tiny_context())
    before = reward.component.score(batch)
    project.relay = Relay([Instance("doubles", "here", plugin)])
    answer = project.relay.hook.rlframe_score(provider=reward.component, batch=batch)
    assert plugin.seen == ["all", "all.second", "all.first", "all.first.second", "all.first.first"]
    added = [("e" in text) + ("o" in text) for text in batch.response_texts]
    assert answer == pytest.approx([x + more for x, more in zip(before, added, strict=True)])


def test_it_is_otherwise_the_reward_that_it_stands_for() -> None:
    context = tiny_context()
    nested: Any = context.build_reward(RewardSpec.model_validate(LENGTH))
    assert isinstance(nested, NestedReward)
    assert isinstance(nested, RewardProvider)
    assert (nested.config, nested.name) == (nested.inner.config, "length")
    assert nested.cheap_to_repeat == nested.inner.cheap_to_repeat
    assert nested.state_dict() == nested.inner.state_dict() == {}
    assert nested.score(reward_batch(context)) == nested.inner.score(reward_batch(context))
    nested.inner.kept = 3
    assert nested.kept == copy.deepcopy(nested).kept == 3
    with pytest.raises(AttributeError, match="unknown"):
        _ = nested.unknown


def test_the_state_of_a_nested_reward_is_kept() -> None:
    class Counts(RewardProvider[PluginConfig]):
        calls = 0

        def score(self, batch: RewardBatch) -> list[float]:
            self.calls += 1
            return [0.0] * len(batch)

        def state_dict(self) -> dict[str, Any]:
            return {"calls": self.calls}

        def load_state_dict(self, state: Any) -> None:
            self.calls = state["calls"]

    nothing: Any = None
    inner, other = (Counts(PluginConfig(), nothing) for _ in range(2))
    nested = NestedReward(inner, lambda: None)
    nested.score(reward_batch(tiny_context()))
    NestedReward(other, lambda: None).load_state_dict(json.loads(json.dumps(nested.state_dict())))
    assert other.calls == 1
