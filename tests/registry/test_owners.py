"""Whose mistake an exception is that has come through components and hook plugins."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest

from rlframe.api import HookPlugin, PluginConfig, RewardProvider, hookimpl
from rlframe.api.component import Instance, KLController
from rlframe.api.owners import Stamped, stamp_of
from rlframe.errors import PluginError, RecipeError, RunError
from rlframe.registry.nested import NestedReward
from rlframe.registry.owners import component_errors, in_words, no_exit
from rlframe.registry.relay import ObserverWarning, Relay

NOTHING: Any = None


class Judge(RewardProvider[PluginConfig]):
    """A reward that does what a test says, and has the name of its place."""

    def __init__(self, name: str, act: Callable[[Any], Any]) -> None:
        super().__init__(PluginConfig(), NOTHING)
        self.name, self.act = name, act

    def score(self, batch: Any) -> Any:
        return self.act(batch)


class Plugin(HookPlugin[PluginConfig]):
    """A wrapper whose body is given."""

    def __init__(self, body: Callable[[Any, Any], Iterator[None]]) -> None:
        super().__init__(PluginConfig(), NOTHING)
        self.body = body

    @hookimpl(wrapper=True)
    def rlframe_score(self, provider: Any, batch: Any) -> Any:
        return (yield from self.body(provider, batch))


class Answers(HookPlugin[PluginConfig]):
    """Answers in the reward's place, by calling it."""

    @hookimpl
    def rlframe_score(self, provider: Any, batch: Any) -> Any:
        return provider.score(batch)


def passes(provider: Any, batch: Any) -> Any:
    return (yield)


def before(provider: Any, batch: Any) -> Any:
    raise KeyError("before")
    yield


def after(provider: Any, batch: Any) -> Any:
    yield
    raise KeyError("after")


def swallows(provider: Any, batch: Any) -> Any:
    try:
        return (yield)
    except ValueError:
        return [0.0]


def swallows_and_raises(provider: Any, batch: Any) -> Any:
    with suppress(ValueError):
        yield
    raise KeyError("later")


def replaces(provider: Any, batch: Any) -> Any:
    try:
        return (yield)
    except Exception as error:
        raise KeyError("replaced") from error


def replaces_in_finally(provider: Any, batch: Any) -> Any:
    try:
        scores = yield
    finally:
        len(scores)
    return scores


def raises_again(provider: Any, batch: Any) -> Any:
    try:
        return (yield)
    except Exception as error:
        raise error


def twice(provider: Any, batch: Any) -> Any:
    yield
    yield


def twice_after_an_error(provider: Any, batch: Any) -> Any:
    try:
        yield
    except ValueError:
        yield


def never(provider: Any, batch: Any) -> Any:
    if provider is None:
        yield


def asks_again(provider: Any, batch: Any) -> Any:
    try:
        return (yield)
    except ValueError:
        return provider.score(batch)


def leaves(provider: Any, batch: Any) -> Any:
    yield
    sys.exit(0)


def right(batch: Any) -> Any:
    return [1.0]


def wrong(batch: Any) -> Any:
    raise ValueError("bad text")


def exhausted(batch: Any) -> Any:
    return next(iter(()))


def quits(batch: Any) -> Any:
    sys.exit(2)


WRAPPER = "hook plugin {!r} of type wrapper, around reward 'all' of type judge,"
REWARD = "reward 'all' of type judge"
OUTER, INNER = WRAPPER.format("outer"), WRAPPER.format("inner")
ANSWERS = Answers(PluginConfig(), NOTHING)


@dataclass
class Case:
    """Wrappers from the outermost, what the reward does, and the beginning of the message."""

    wrappers: tuple[Any, ...]
    reward: Callable[[Any], Any]
    message: str | None
    answer: Any = field(default=None)


CASES = {
    "nobody around it": Case((), wrong, f"{REWARD} raised ValueError in `score`: bad text"),
    "let through": Case((passes,), wrong, f"{REWARD} raised ValueError in `score`: bad text"),
    "raised again": Case((raises_again,), wrong, f"{REWARD} raised ValueError in `score`: bad"),
    "before the yield": Case((before,), right, f"{OUTER} raised KeyError in `rlframe_score`"),
    "after the yield": Case((after,), right, f"{OUTER} raised KeyError in `rlframe_score`"),
    "swallowed": Case((swallows,), wrong, None, [0.0]),
    "swallowed, and another raised": Case(
        (swallows_and_raises,), wrong, f"{OUTER} raised KeyError in `rlframe_score`: 'later'"
    ),
    "replaced": Case((replaces,), wrong, f"{OUTER} raised KeyError in `rlframe_score`: 'replaced'"),
    "replaced in finally": Case((replaces_in_finally,), wrong, f"{OUTER} raised UnboundLocalError"),
    "the inner of two": Case((passes, before), right, f"{INNER} raised KeyError"),
    "the outer of two": Case((after, passes), right, f"{OUTER} raised KeyError"),
    "the inner of two replaces": Case((passes, replaces), wrong, f"{INNER} raised KeyError"),
    "the outer of two replaces the inner's": Case(
        (replaces, after), right, f"{OUTER} raised KeyError in `rlframe_score`: 'replaced'"
    ),
    "the outer of two swallows the replacement": Case(
        (lambda *_: (yield from swallows_all()), replaces), wrong, None, [0.5]
    ),
    "yielded twice": Case(
        (twice,), right, f"{OUTER} raised RuntimeError in `rlframe_score`: a wrapper yields once"
    ),
    "yielded twice after an error": Case(
        (twice_after_an_error,), wrong, f"{OUTER} raised RuntimeError in `rlframe_score`: a wrapper"
    ),
    "never yielded": Case((never,), right, f"{OUTER} raised RuntimeError in `rlframe_score`"),
    "asked again by the wrapper": Case(
        (asks_again,), wrong, f"{REWARD} raised ValueError in `score`: bad text"
    ),
    "asked by a plugin in its place": Case(
        (ANSWERS,), wrong, f"{REWARD} raised ValueError in `score`: bad text"
    ),
    "the end of an iterator": Case(
        (passes, passes), exhausted, f"{REWARD} raised StopIteration in"
    ),
    "an exit of the reward": Case((passes,), quits, f"{REWARD} called sys.exit(2) in `score` ["),
    "an exit of a wrapper": Case(
        (passes, leaves), right, f"{INNER} called sys.exit(0) in `rlframe_score` ["
    ),
}


def swallows_all() -> Any:
    try:
        return (yield)
    except KeyError:
        return [0.5]


def relay_of(wrappers: tuple[Any, ...]) -> Relay:
    plugins = [w if isinstance(w, HookPlugin) else Plugin(w) for w in wrappers]
    names = ("outer", "inner")
    return Relay([Instance(n, "wrapper", p) for n, p in zip(names, plugins, strict=False)])


def called(relay: Relay, reward: Judge) -> Any:
    with relay.named("reward", Instance(reward.name, "judge", reward), "score"):
        return relay.hook.rlframe_score(provider=reward, batch=None)


@pytest.mark.parametrize("case", CASES.values(), ids=list(CASES))
def test_the_owner_of_an_exception_is_whose_code_raised_it(case: Case) -> None:
    reward = Judge("all", case.reward)
    if case.message is None:
        assert called(relay_of(case.wrappers), reward) == case.answer
        return
    with pytest.raises(RunError) as caught:
        called(relay_of(case.wrappers), reward)
    assert str(caught.value).startswith(case.message)
    assert re.search(re.escape(f"[{__file__}:") + r"\d+\]", str(caught.value))
    cause = caught.value.__cause__
    assert cause is not None
    assert stamp_of(cause) is None


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.message])
def test_of_a_nested_reward_the_innermost_owner_stays(name: str) -> None:
    """The wrappers are around both; the outer reward itself is right."""
    case = CASES[name]
    relay = relay_of(())
    inner = Judge("all.inner", case.reward)
    nested = NestedReward(inner, lambda: relay)
    outer = Judge("all", lambda batch: nested.score(batch))
    first = [w if isinstance(w, HookPlugin) else OnlyAround(inner, w) for w in case.wrappers]
    relay = relay_of(tuple(first))
    assert case.message is not None
    message = case.message.replace(REWARD, f"reward 'all.inner' (class Judge) inside {REWARD}", 1)
    message = case.message if case.message.startswith("hook plugin") else message
    with pytest.raises(RunError) as caught:
        called(relay, outer)
    assert str(caught.value).startswith(message)


class OnlyAround(Plugin):
    """Lets the calls of other rewards alone."""

    def __init__(self, reward: Judge, body: Any) -> None:
        def chosen(provider: Any, batch: Any) -> Any:
            return (yield from (body if provider is reward else passes)(provider, batch))

        super().__init__(chosen)


def test_an_outer_reward_that_replaces_the_error_of_an_inner_one_is_the_owner() -> None:
    def replaced(batch: Any) -> Any:
        try:
            return nested.score(batch)
        except ValueError as error:
            raise LookupError("no score") from error

    relay = relay_of(())
    nested = NestedReward(Judge("all.inner", wrong), lambda: relay)
    with pytest.raises(RunError, match=r"^reward 'all' of type judge raised LookupError"):
        called(relay, Judge("all", replaced))


def test_the_same_exception_raised_by_two_belongs_to_each_in_turn() -> None:
    shared = ValueError("shared")

    def raises(batch: Any) -> Any:
        raise shared

    first, second = Judge("first", raises), Judge("second", raises)
    with pytest.raises(RunError, match=r"^reward 'first' of type judge raised ValueError"):
        called(relay_of(()), first)
    assert called(relay_of((swallows,)), first) == [0.0]
    with pytest.raises(RunError, match=r"^reward 'second' of type judge raised ValueError"):
        called(relay_of(()), second)


def test_an_exception_that_refuses_attributes_is_stamped_all_the_same() -> None:
    @dataclass(frozen=True)
    class FrozenError(Exception):
        row: int

    def raises(batch: Any) -> Any:
        raise FrozenError(3)

    inner = Judge("inner", raises)
    with pytest.raises(RunError, match=r"^reward 'inner' \(class Judge\) inside reward 'all'"):
        called(relay_of((passes,)), Judge("all", inner.score))


def test_a_component_of_no_kind_is_its_own_owner() -> None:
    plain: Any = SimpleNamespace(name="plain", score=wrong)
    with pytest.raises(RunError, match=r"^reward 'plain' of type judge raised ValueError"):
        called(relay_of((passes,)), plain)


def test_methods_that_come_from_elsewhere_are_stamped_too() -> None:
    class Mixin:
        def score(self, batch: Any) -> Any:
            raise ValueError("mixed in")

    class Mixed(Mixin, Judge):
        pass

    with pytest.raises(ValueError, match="mixed in") as caught:
        Mixed("mixed", right).score(None)
    found = stamp_of(caught.value)
    assert found is not None
    assert (found.owner.name, found.method) == ("mixed", "score")  # type: ignore[attr-defined]


def test_an_observer_that_is_ignored_leaves_no_stamp() -> None:
    error = ValueError("no disk")

    class Observer(HookPlugin[PluginConfig]):
        @hookimpl
        def rlframe_metrics(self, event: Any) -> None:
            raise error

    relay = Relay([Instance("mine", "observer (d 1)", Observer(PluginConfig(), NOTHING))])
    with pytest.warns(
        ObserverWarning, match=r"'mine' of type observer \(d 1\) raised ValueError in"
    ):
        relay.tell("metrics", None)
    assert stamp_of(error) is None


def test_what_a_component_raises_outside_of_hooks_names_it_its_method_and_the_line() -> None:
    judge = Judge("mine", right)
    with (
        pytest.raises(PluginError) as caught,
        component_errors("reward 'mine'", judge, "check", raises=PluginError, hint="!"),
    ):
        wrong(None)
    line = wrong.__code__.co_firstlineno + 1
    message = f"reward 'mine' raised ValueError in `check`: bad text [{__file__}:{line}]!"
    assert str(caught.value) == message
    with (
        pytest.raises(RunError, match=r"^reward 'mine' called sys.exit\(2\) in `check` \["),
        component_errors("reward 'mine'", judge, "check"),
    ):
        quits(None)
    with (
        pytest.raises(RecipeError, match=r"^its own words$"),
        component_errors("reward 'mine'", judge, "check"),
    ):
        raise RecipeError("its own words")


def test_an_exit_that_nobody_reports_is_the_owners_of_its_stamp() -> None:
    with (
        pytest.raises(
            RunError, match=r"^it was left: reward 'mine' \(class Judge\) called sys.exit"
        ),
        no_exit("it"),
        Stamped(Judge("mine", right), "score"),
    ):
        sys.exit(1)


def test_components_are_called_by_their_kind() -> None:
    assert in_words(Judge("mine", right)) == "reward 'mine' (class Judge)"
    assert in_words(Judge) == "reward (class Judge)"
    assert in_words(KLController) == "KL controller (class KLController)"
