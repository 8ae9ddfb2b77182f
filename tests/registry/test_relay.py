"""Who takes part in a moment of the run, in which order, and what happens when one of them fails."""

from __future__ import annotations

import json
import re
from dataclasses import FrozenInstanceError
from typing import Any

import pytest
import torch

from rlframe.api import HookPlugin, PluginConfig, StopTraining, hookimpl
from rlframe.api.component import Instance
from rlframe.api.events import Metrics
from rlframe.errors import RunError
from rlframe.registry.lint import HOOKS
from rlframe.registry.relay import ObserverWarning, Relay

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
    who = r"hooks.broken: 'broken' of type observer \(some-dist 1.2\)"
    words = rf"{who} raised ValueError in `rlframe_metrics`: no disk"
    with pytest.warns(ObserverWarning, match=words):
        relay.tell("metrics", EVENT)
    with pytest.warns(ObserverWarning, match="This is ignored"):
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
    printed = capsys.readouterr().err
    assert re.fullmatch(
        r"rlframe_score\(provider=Provider, batch=None\) by rlframe -> list\[1\] in [\d.]+ ms\n",
        printed,
    )
    monkeypatch.setenv("RLFRAME_TRACE_HOOKS", "0")
    Relay().hook.rlframe_score(provider=Provider(), batch=None)
    assert capsys.readouterr().err == ""


@pytest.mark.filterwarnings("ignore::rlframe.registry.relay.ObserverWarning")
def test_tracing_shows_who_took_part_what_came_of_it_and_the_observers(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Veto(HookPlugin[PluginConfig]):
        @hookimpl(wrapper=True)
        def rlframe_score(self, provider: Any, batch: Any) -> Any:
            yield
            raise RuntimeError("veto")

    class Provider:
        def score(self, batch: Any) -> list[float]:
            return [1.0]

    monkeypatch.setenv("RLFRAME_TRACE_HOOKS", "1")
    relay = Relay(
        [
            instance(Veto, "veto"),
            instance(observer([], "fine"), "fine"),
            instance(observer([], "-", ValueError("no disk")), "broken"),
        ]
    )
    with pytest.raises(RuntimeError):
        relay.hook.rlframe_score(provider=Provider(), batch=torch.zeros(2, 3))
    relay.tell("metrics", EVENT)
    found = [line.rpartition(" in ")[0] for line in capsys.readouterr().err.splitlines()]
    call = "rlframe_score(provider=Provider, batch=Tensor[2, 3])"
    assert found == [
        f"{call} by hooks.veto, rlframe raised RuntimeError('veto')",
        "rlframe_metrics(event=Metrics) by hooks.fine -> None",
        "rlframe_metrics(event=Metrics) by hooks.broken raised ValueError('no disk')",
    ]


def test_ctrl_c_in_an_observer_is_not_swallowed() -> None:
    class Slow(HookPlugin[PluginConfig]):
        @hookimpl
        def rlframe_metrics(self, event: Metrics) -> None:
            raise KeyboardInterrupt

    relay = Relay([instance(Slow)])
    with pytest.raises(KeyboardInterrupt):
        relay.tell("metrics", EVENT)
    assert relay.errors == 0


def test_what_raised_is_told_with_its_own_line_and_not_that_of_a_library() -> None:
    class Reads(HookPlugin[PluginConfig]):
        @hookimpl(wrapper=True)
        def rlframe_score(self, provider: Any, batch: Any) -> Any:
            json.loads("{")
            return (yield)

        @hookimpl
        def rlframe_metrics(self, event: Metrics) -> None:
            json.loads("{")

    class Provider:
        def score(self, batch: Any) -> list[float]:
            return [1.0]

    def line(name: str) -> int:
        return int(getattr(Reads, name).__code__.co_firstlineno) + 2

    judge: Instance[Any] = Instance("judge", "provider (dist 1)", Provider())
    relay = Relay([instance(Reads)])
    where = re.escape(f"[{__file__}:{line('rlframe_score')}]")
    with (
        pytest.raises(RunError, match=f"hook plugin 'mine'.*around reward 'judge'.*{where}$"),
        relay.named("reward", judge, "score"),
    ):
        relay.hook.rlframe_score(provider=judge.component, batch=None)
    where = re.escape(f"[{__file__}:{line('rlframe_metrics')}]")
    with pytest.warns(
        ObserverWarning, match=f"JSONDecodeError in `rlframe_metrics`.*{where}. This is ignored$"
    ):
        relay.tell("metrics", EVENT)


def test_an_observer_that_ends_the_training_is_no_mistake_and_silences_nobody() -> None:
    class Enough(HookPlugin[PluginConfig]):
        @hookimpl
        def rlframe_heldout_evaluated(self, event: Any) -> None:
            raise StopTraining(f"enough after {event}")

    nothing: Any = None
    plugins = [Enough(PluginConfig(), nothing) for _ in range(2)]
    relay = Relay([Instance(n, n, p) for n, p in zip(("first", "second"), plugins, strict=True)])
    assert relay.stop is None
    relay.tell("heldout_evaluated", 3)
    relay.tell("heldout_evaluated", 4)
    assert relay.stop == "hooks.first: enough after 3"
    assert relay.errors == 0
