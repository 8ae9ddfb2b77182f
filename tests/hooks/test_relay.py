"""Who takes part in a moment of the run, in which order, and what happens when one of them fails."""

from __future__ import annotations

from dataclasses import FrozenInstanceError
from typing import Any

import pytest

from rlframe.hooks import HookPlugin, PluginConfig, hookimpl
from rlframe.hooks.component import Instance
from rlframe.hooks.events import Metrics
from rlframe.hooks.lint import HOOKS
from rlframe.hooks.relay import ObserverWarning, Relay

EVENT = Metrics(3, {"lr": 0.1})


def instance(plugin: type[HookPlugin[Any]], name: str = "mine") -> Instance[Any]:
    context: Any = None
    return Instance(
        name, f"{plugin.__name__.lower()} (some-dist 1.2)", plugin(PluginConfig(), context)
    )


def observer(said: list[str], word: str, error: Exception | None = None) -> type[HookPlugin[Any]]:
    class Observer(HookPlugin[PluginConfig]):
        @hookimpl
        def rlframe_metrics(self, event: Metrics) -> None:
            if error is not None:
                raise error
            said.append(f"{word} {event.update}")

    return Observer


def test_observers_are_told_in_the_order_of_the_recipe() -> None:
    said: list[str] = []
    relay = Relay([instance(observer(said, w), w) for w in ("first", "second", "third")])
    relay.tell("metrics", EVENT)
    assert said == ["first 3", "second 3", "third 3"]


def test_the_first_wrapper_of_the_recipe_is_the_outermost() -> None:
    said: list[str] = []

    def wrapper(word: str) -> type[HookPlugin[Any]]:
        class Wrapper(HookPlugin[PluginConfig]):
            @hookimpl(wrapper=True)
            def rlframe_score(self, provider: Any, batch: Any) -> Any:
                said.append(f"{word} in")
                scores = yield
                said.append(f"{word} out")
                return scores

        return Wrapper

    class Provider:
        def score(self, batch: Any) -> list[float]:
            said.append("score")
            return [1.0]

    relay = Relay([instance(wrapper("outer"), "a"), instance(wrapper("inner"), "b")])
    assert relay.hook.rlframe_score(provider=Provider(), batch=None) == [1.0]
    assert said == ["outer in", "inner in", "score", "inner out", "outer out"]


def test_an_observer_that_raises_is_named_and_counted_and_silences_nobody() -> None:
    said: list[str] = []
    broken = instance(observer(said, "-", ValueError("no disk")), "broken")
    relay = Relay([broken, instance(observer(said, "after"), "after")])
    words = r"hooks.broken: 'broken' of type observer \(some-dist 1.2\) raised in rlframe_metrics"
    with pytest.warns(ObserverWarning, match=words):
        relay.tell("metrics", EVENT)
    with pytest.warns(ObserverWarning, match="ValueError: no disk"):
        relay.tell("metrics", EVENT)
    assert (relay.errors, said) == (2, ["after 3", "after 3"])


def test_an_event_can_not_be_changed() -> None:
    with pytest.raises(FrozenInstanceError):
        EVENT.update = 4  # type: ignore[misc]


def test_every_hook_can_be_implemented_at_once() -> None:
    source = "\n".join(f"    @hookimpl\n    def {name}(self): return None\n" for name in HOOKS)
    scope: dict[str, Any] = {"HookPlugin": HookPlugin, "hookimpl": hookimpl}
    exec(f"class All(HookPlugin):\n{source}", scope)
    hook = Relay([instance(scope["All"])]).hook
    assert all(len(getattr(hook, name).get_hookimpls()) >= 1 for name in HOOKS)


def test_tracing_shows_each_call(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Provider:
        def score(self, batch: Any) -> list[float]:
            return [1.0]

    monkeypatch.setenv("RLFRAME_TRACE_HOOKS", "1")
    Relay().hook.rlframe_score(provider=Provider(), batch=None)
    assert "rlframe_score" in capsys.readouterr().err
    monkeypatch.setenv("RLFRAME_TRACE_HOOKS", "0")
    Relay().hook.rlframe_score(provider=Provider(), batch=None)
    assert capsys.readouterr().err == ""
