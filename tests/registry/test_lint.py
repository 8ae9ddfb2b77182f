"""What would never be called as its author thinks is reported when a class is loaded."""

from __future__ import annotations

from typing import Any

import pytest

from rlframe.api import AdvantageEstimator, Component, HookPlugin, RewardProvider, hookimpl
from rlframe.errors import PluginError
from rlframe.registry.discovery import Registry


@hookimpl
def plain(self: Any, event: Any) -> None: ...


def undecorated(self: Any, event: Any) -> None: ...


@hookimpl(tryfirst=True)
def first(self: Any, event: Any) -> None: ...


@hookimpl(hookwrapper=True)
def old(self: Any, provider: Any, batch: Any) -> Any:
    yield


@hookimpl(wrapper=True)
def wrapper(self: Any) -> Any:
    return (yield)


@hookimpl(wrapper=True)
def no_yield(self: Any) -> Any: ...


@hookimpl
def generator(self: Any) -> Any:
    yield


@hookimpl
def defaulted(self: Any, event: Any = None) -> None: ...


@hookimpl
def misspelt_argument(self: Any, evnt: Any) -> None: ...


def refused(members: dict[str, Any]) -> str:
    registry = Registry()
    registry.add("hooks", "mine", type("Plugin", (HookPlugin,), members))
    with pytest.raises(PluginError) as caught:
        registry.load("hooks", "mine")
    return str(caught.value)


@pytest.mark.parametrize(
    ("name", "function", "words"),
    [
        ("rlframe_metrics", undecorated, "rlframe_metrics is not decorated with @hookimpl"),
        (
            "rlframe_metric",
            plain,
            "there is no hook rlframe_metric. Did you mean 'rlframe_metrics'?",
        ),
        ("rlframe_metrics", first, "the order is that of the recipe's `hooks:`"),
        ("rlframe_score", old, "old-style wrapper; write @hookimpl(wrapper=True)"),
        (
            "rlframe_metrics",
            wrapper,
            "rlframe_metrics is notified of an event, which nothing can wrap",
        ),
        ("rlframe_score", no_yield, "a wrapper that never yields"),
        ("rlframe_score", generator, "yields but is no wrapper"),
        ("rlframe_metrics", defaulted, "argument 'event' has a default"),
        ("rlframe_metrics", misspelt_argument, "no argument 'evnt'. Did you mean 'event'?"),
    ],
)
def test_what_would_never_be_called_is_refused_by_name(
    name: str, function: Any, words: str
) -> None:
    message = refused({name: function})
    assert message.startswith("hook plugin mine (local 0): ")
    assert words in message


def test_a_plugin_without_hooks_and_every_mistake_at_once() -> None:
    assert "it implements no hook" in refused({})
    both = refused({"rlframe_metrics": first, "rlframe_score": undecorated})
    assert "asks for an order" in both
    assert "rlframe_score is not decorated" in both


def combine(self: Any, total: Any, values: Any, batch: Any) -> Any: ...


def estimate(self: Any, rewards: Any, values: Any, mask: Any) -> Any: ...


@pytest.mark.parametrize(
    ("kind", "base", "members", "words"),
    [
        ("reward_providers", RewardProvider, {"combine": combine}, "from `gate`"),
        (
            "advantage_estimators",
            AdvantageEstimator,
            {"estimate": estimate},
            "takes rewards, values, mask, but is given one CreditBatch",
        ),
    ],
)
def test_a_component_of_an_earlier_contract_is_told_what_took_its_place(
    kind: str, base: type[Component[Any]], members: dict[str, Any], words: str
) -> None:
    registry = Registry()
    registry.add(kind, "mine", type("Mine", (base,), members))
    with pytest.raises(PluginError, match=words):
        registry.load(kind, "mine")


def test_what_keeps_the_rules_is_loaded() -> None:
    registry = Registry()
    members = {"rlframe_metrics": plain, "rlframe_score": wrapper, "helper": undecorated}
    registry.add("hooks", "mine", type("Plugin", (HookPlugin,), members))
    assert issubclass(registry.load("hooks", "mine"), HookPlugin)
