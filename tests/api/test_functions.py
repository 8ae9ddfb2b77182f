"""A plain function as a reward: what it is given, what becomes a key, and what cannot be one."""

from __future__ import annotations

import asyncio
import pickle
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import pytest
import torch
from pydantic import Field, ValidationError

from rlframe.api import Prompt, RewardBatch, RewardProvider, StopReason, reward_from_function
from rlframe.errors import PluginError, RecipeError
from rlframe.registry.discovery import Registry
from rlframe.testing.checks import CHECKS
from rlframe.testing.run import check_component
from rlframe.testing.subject import Subject
from rlframe.testing.world import tiny_context

CHAT = ({"role": "user", "content": "why?"},)


def batch(*, chat: bool = False, **changes: Any) -> RewardBatch:
    rows: list[dict[str, Any]] = [
        {"answer": "4", "prompt": "p", "level": 1},
        {"answer": "5", "prompt": "q", "level": 2},
    ]
    return RewardBatch(
        **{
            "prompts": [Prompt("ask", (1, 5), row, CHAT if chat else None) for row in rows],
            "response_texts": [" 4", "5 "],
            "response_ids": [[7, 2], [8]],
            "stop_reasons": [StopReason.EOS, StopReason.LENGTH],
            "group_ids": [0, 1],
            "update": 3,
            "updates": 9,
            "generator": torch.Generator(),
            **changes,
        }
    )


def built(function: Callable[..., Any], **keys: Any) -> RewardProvider[Any]:
    component: Any = reward_from_function(function)
    context = tiny_context(data={"answer": ["4"], "level": [1]})
    return component(component.Config.model_validate(keys), context)  # type: ignore[no-any-return]


def test_it_is_given_what_trl_gives_by_name() -> None:
    seen: dict[str, Any] = {}

    def reward(prompts: Any, completions: Any, completion_ids: Any, trainer_state: Any) -> Any:
        seen.update(locals())
        return [1.0, None]

    assert built(reward).score(batch()) == [1.0, None]
    state = seen.pop("trainer_state")
    assert (state.global_step, state.max_steps) == (3, 9)
    seen.pop("seen")
    assert seen == {
        "prompts": ["ask", "ask"],
        "completions": [" 4", "5 "],
        "completion_ids": [[7, 2], [8]],
    }


def test_a_chat_is_given_as_messages() -> None:
    def reward(prompts: Any, completions: Any) -> Any:
        assert prompts == [[{"role": "user", "content": "why?"}]] * 2
        return [
            len(turns[0]["content"]) + (turns[0]["role"] == "assistant") for turns in completions
        ]

    assert built(reward).score(batch(chat=True)) == [3, 3]


def test_a_parameter_without_default_is_a_column_that_the_data_must_have() -> None:
    def reward(completions: Any, answer: Any) -> Any:
        return [float(a in c) for a, c in zip(answer, completions, strict=True)]

    assert built(reward).score(batch()) == [1.0, 1.0]
    component = reward_from_function(reward)
    assert component.needs(component.Config()).columns == {"answer"}


def test_kwargs_are_given_every_column_but_the_prompts_own_and_what_trl_adds() -> None:
    def reward(completions: Any, **kwargs: Any) -> Any:
        assert kwargs["answer"] == ["4", "5"]
        assert not {"prompt", "completion", "completions"} & kwargs.keys()
        assert {"prompts", "completion_ids", "trainer_state", "log_extra", "log_metric"} <= set(
            kwargs
        )
        return [0.0] * len(completions)

    row = {"answer": "", "prompt": "", "level": 0, "text": "", "label": 1, "response": ""}
    given = batch()
    for prompt, answer in zip(given.prompts, ("4", "5"), strict=True):
        prompt.columns.update(row, answer=answer)  # type: ignore[attr-defined]
    assert built(reward).score(given) == [0, 0]


def test_a_parameter_with_a_default_is_a_key_of_the_recipe_with_its_type() -> None:
    def reward(
        completions: Any,
        target: int = 4,
        slope: Annotated[float, Field(gt=0)] = 0.5,
        words: tuple[str, ...] = (),
        scale=2,  # type: ignore[no-untyped-def]
    ) -> Any:
        return [slope * scale * (len(c) - target) + len(words) for c in completions]

    assert built(reward).score(batch()) == [-2, -2]
    assert built(reward, target=2, slope=3, words=["a"], scale=0.5).score(batch()) == [1, 1]
    for wrong in ({"target": 1.5}, {"slope": 0}, {"words": 3}, {"other": 1}):
        with pytest.raises(ValidationError):
            built(reward, **wrong)


def test_a_column_takes_the_place_of_a_key_which_is_then_refused() -> None:
    def reward(completions: Any, level: int = 7) -> Any:
        return level if isinstance(level, list) else [level] * len(completions)

    assert built(reward).score(batch()) == [1, 2]
    component = reward_from_function(reward)
    context = tiny_context(data={"level": [1]})
    component.check(component.Config(), context)
    with pytest.raises(RecipeError, match=r"nothing reads 'level': .* a column of that name"):
        component.check(component.Config.model_validate({"level": 3}), context)


def test_an_async_function_is_awaited_also_where_a_loop_runs_already() -> None:
    async def reward(completions: Any) -> Any:
        await asyncio.sleep(0)
        assert not torch.is_grad_enabled()
        return [float(len(c)) for c in completions]

    async def notebook() -> Any:
        return built(reward).score(batch())

    with torch.no_grad():
        assert built(reward).score(batch()) == [2, 2]
        assert asyncio.run(notebook()) == [2, 2]


class Counter:
    """An object that can be called, and has a state of its own."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, completions: Any, bonus: float = 1.0) -> Any:
        self.calls += 1
        return [bonus] * len(completions)


def test_an_object_that_can_be_called_and_a_partial_are_functions() -> None:
    counter = Counter()
    assert built(counter, bonus=2).score(batch()) == [2, 2]
    assert counter.calls == 1
    with pytest.raises(ValidationError):
        built(counter, bonus="much")

    def reward(completions: Any, answer: Any, by: int = 1) -> Any:
        return [by] * len(completions)

    half = partial(partial(reward, answer=["x"]), by=2)
    assert built(half, by=3).score(batch()) == [3, 3]
    assert reward_from_function(half).__module__ == __name__  # whose file a run's manifest has
    with pytest.raises(ValidationError):
        built(half, by=1.5)


def with_star(completions: Any, *answers: Any) -> Any: ...
def by_place(completions: Any, /) -> Any: ...
def hidden(completions: Any, _secret: int = 1) -> Any: ...
def taken(completions: Any, weight: float = 1.0) -> Any: ...
def of_pydantic(completions: Any, model_dump: float = 1.0) -> Any: ...
def unknown(completions: Any, how: NotThere = 1) -> Any: ...  # type: ignore[name-defined] # noqa: F821
def no_key(completions: Any, how: torch.Tensor = None) -> Any: ...  # type: ignore[assignment]


@pytest.mark.parametrize(
    ("function", "why"),
    [
        (with_star, "takes 'answers' by position, but everything is given by name"),
        (by_place, "by position"),
        (hidden, "'_secret' begins with an underscore"),
        (taken, "'weight' is a key of every reward"),
        (of_pydantic, "'model_dump' is .*pydantic needs"),
        (unknown, "its annotations cannot be read: NameError.*NotThere"),
        (no_key, "make no keys of a recipe"),
        (dict.fromkeys, "by position|does not say its parameters"),
    ],
    ids=lambda one: getattr(one, "__name__", ""),
)
def test_what_cannot_be_filled_is_refused_with_the_reason(function: Any, why: str) -> None:
    with pytest.raises(PluginError, match=why):
        reward_from_function(function)


def fine(completions: Any, target: int = 9) -> Any:
    """As near as possible to a length."""
    return [-abs(len(c) - target) / 9 for c in completions]


def soft(length: int) -> Callable[..., Any]:
    """A factory of rewards, as TRL has for those with parameters."""

    def reward(completions: Any, power: float = 1.0) -> Any:
        return [-(abs(len(c) - length) ** power) for c in completions]

    return reward


def test_it_is_a_reward_like_any_other() -> None:
    component: Any = reward_from_function(fine)
    results = check_component(Subject(component, {"target": 12}))
    assert {r.outcome for r in results} == {"ok"}
    assert len(results) == len(CHECKS["reward_providers"])
    assert component.__doc__ == "As near as possible to a length."
    config = component.Config(target=3)
    assert pickle.loads(pickle.dumps(config)) == config


def longer(completions: Any, answer: Any, by: int = 1) -> Any:
    return [by * len(c) - len(a) for c, a in zip(completions, answer, strict=True)]


longer.cheap_to_repeat = True  # type: ignore[attr-defined]
longer.example_data = {"answer": ["a", "bb"]}  # type: ignore[attr-defined]


def test_attributes_of_the_function_are_those_of_the_class() -> None:
    component: Any = reward_from_function(longer)
    assert component.cheap_to_repeat
    assert not reward_from_function(fine).cheap_to_repeat
    assert {r.outcome for r in check_component(Subject(component))} == {"ok"}


def test_a_file_offers_its_functions_and_those_of_others_that_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    source = "from os.path import join\nfrom functools import partial\n"
    source += "from operator import methodcaller\nfrom tests.api.test_functions import fine, soft\n"
    source += "close = soft(4)\n"
    source += "def mine(completions, by=1):\n    return [by] * len(completions)\n"
    source += "def _helper(): ...\nloud = partial(mine, by=9)\n"
    (tmp_path / "rewards.py").write_text(source)
    registry = Registry(local_code=True)
    for name in ("mine", "loud"):
        assert issubclass(registry.load("reward_providers", f"./rewards.py:{name}"), RewardProvider)
    for name, key in (("fine", "target"), ("close", "power")):  # imported, and made by a factory
        found = registry.load("reward_providers", f"./rewards.py:{name}")
        assert set(found.Config.model_fields) == {key}
    with pytest.raises(PluginError, match=r"no component 'nine'.*It defines: loud, mine$"):
        registry.load("reward_providers", "./rewards.py:nine")
    with pytest.raises(PluginError, match=r"'join' takes 'a' by position|'p' by position"):
        registry.load("reward_providers", "./rewards.py:join")
    for name in ("_helper", "methodcaller"):
        with pytest.raises(PluginError, match=f"no component '{name}'"):
            registry.load("reward_providers", f"./rewards.py:{name}")
    assert registry.kind_in_file("./rewards.py:mine") == "reward_providers"
    with pytest.raises(PluginError, match="is not a subclass of KLController"):
        registry.load("kl_controllers", "./rewards.py:mine")


def test_a_program_may_add_a_function_by_hand() -> None:
    registry = Registry()
    registry.add("reward_providers", "mine", fine)
    assert issubclass(registry.load("reward_providers", "mine"), RewardProvider)
