"""Hooks: the component is called, once, unless somebody wraps the call or answers first."""

import dataclasses
import re
from pathlib import Path

import pytest

from rlframe.api import (
    AdvantageEstimator,
    AuxiliaryLoss,
    KLController,
    PluginConfig,
    PolicyLoss,
    RewardProvider,
    RewardTransform,
    Sampler,
    ValueLoss,
    events,
    hookimpl,
)
from rlframe.api.spec import Specification, plugin_manager


def recording(base, method, calls):
    """A component of a kind that notes what its method is called with and returns "answer"."""

    def called(self, *arguments):
        calls.append(arguments)
        return "answer"

    return type("Recording", (base,), {method: called})(PluginConfig(), None)


HOOKS = {
    "rlframe_sample": (Sampler, "sample", "sampler", ("requests", "params", "seed")),
    "rlframe_score": (RewardProvider, "score", "provider", ("batch",)),
    "rlframe_gate": (RewardProvider, "gate", "provider", ("batch",)),
    "rlframe_transform_reward": (RewardTransform, "apply", "transform", ("state", "scores")),
    "rlframe_update_kl": (KLController, "update", "controller", ("state", "measured")),
    "rlframe_auxiliary_loss": (AuxiliaryLoss, "loss", "loss", ("policy", "batch")),
    "rlframe_compute_advantages": (AdvantageEstimator, "estimate", "estimator", ("batch",)),
    "rlframe_policy_loss": (PolicyLoss, "loss", "loss", ("batch",)),
    "rlframe_value_loss": (ValueLoss, "loss", "loss", ("batch",)),
}


@pytest.mark.parametrize("hook", HOOKS)
def test_by_default_a_hook_calls_the_components_method_once_with_its_arguments(hook):
    base, method, role, names = HOOKS[hook]
    calls = []
    component = recording(base, method, calls)
    arguments = {name: f"the {name}" for name in names}
    found = getattr(plugin_manager().hook, hook)(**{role: component}, **arguments)
    assert found == "answer"
    assert calls == [tuple(arguments.values())]


class Reward(RewardProvider[PluginConfig]):
    def score(self, batch):
        self.asked = getattr(self, "asked", 0) + 1
        return [1.0, 2.0]


@pytest.fixture
def reward():
    return Reward(PluginConfig(), None)


class Doubling:
    @hookimpl(wrapper=True)
    def rlframe_score(self, provider, batch):
        scores = yield
        return [2 * score for score in scores]


class PlusOne:
    @hookimpl(wrapper=True)
    def rlframe_score(self, batch):  # an implementation takes only what it needs
        scores = yield
        return [score + 1 for score in scores]


def test_a_wrapper_can_change_the_score_and_no_longer_does_once_it_is_gone(reward):
    manager = plugin_manager()
    doubling = Doubling()
    manager.register(doubling)
    assert manager.hook.rlframe_score(provider=reward, batch=None) == [2.0, 4.0]
    manager.unregister(doubling)
    assert manager.hook.rlframe_score(provider=reward, batch=None) == [1.0, 2.0]


def test_wrappers_nest_the_one_registered_last_outermost(reward):
    manager = plugin_manager()
    manager.register(Doubling())
    manager.register(PlusOne())
    assert manager.hook.rlframe_score(provider=reward, batch=None) == [3.0, 5.0]


def test_an_implementation_that_answers_keeps_the_component_from_being_asked(reward):
    class Cached:
        @hookimpl
        def rlframe_score(self, provider, batch):
            return [7.0]

    manager = plugin_manager()
    manager.register(Cached())
    assert manager.hook.rlframe_score(provider=reward, batch=None) == [7.0]
    assert not hasattr(reward, "asked")


def test_an_implementation_that_returns_none_leaves_it_to_the_component(reward):
    class Watching:
        @hookimpl
        def rlframe_score(self, provider, batch):
            return None

    manager = plugin_manager()
    manager.register(Watching())
    assert manager.hook.rlframe_score(provider=reward, batch=None) == [1.0, 2.0]
    assert reward.asked == 1


def test_a_wrapper_sees_what_the_component_raises_and_may_answer_instead():
    class Failing(RewardProvider[PluginConfig]):
        def score(self, batch):
            raise ConnectionError("no judge")

    class Mending:
        @hookimpl(wrapper=True)
        def rlframe_score(self, provider, batch):
            try:
                return (yield)
            except ConnectionError:
                return [0.5]

    manager = plugin_manager()
    failing = Failing(PluginConfig(), None)
    with pytest.raises(ConnectionError, match="no judge"):
        manager.hook.rlframe_score(provider=failing, batch=None)
    manager.register(Mending())
    assert manager.hook.rlframe_score(provider=failing, batch=None) == [0.5]


def test_two_managers_do_not_share_plugins(reward):
    one, other = plugin_manager(), plugin_manager()
    one.register(Doubling())
    assert one.hook.rlframe_score(provider=reward, batch=None) == [2.0, 4.0]
    assert other.hook.rlframe_score(provider=reward, batch=None) == [1.0, 2.0]


def test_a_wrapper_of_one_hook_leaves_the_others_alone():
    manager = plugin_manager()
    manager.register(Doubling())
    controller = recording(KLController, "update", [])
    found = manager.hook.rlframe_update_kl(controller=controller, state=None, measured=None)
    assert found == "answer"


def test_every_hook_that_calls_a_component_has_a_default_and_the_others_have_none():
    manager = plugin_manager()
    manager.check_pending()
    callers = {
        name: hook for name, hook in vars(manager.hook).items() if name.startswith("rlframe_")
    }
    assert {name for name, hook in callers.items() if hook.get_hookimpls()} == set(HOOKS)
    assert all((name in HOOKS) == hook.spec.opts["firstresult"] for name, hook in callers.items())


OBSERVED = [
    name
    for name, hook in vars(Specification).items()
    if name.startswith("rlframe_") and "event" in hook.__annotations__
]


def readers():
    """The observers of this repository: the kit for plugins and all tests are left out."""
    root = Path(__file__).parents[2]
    sources = [
        *root.glob("plugins/*/src/**/*.py"),
        *root.glob("rlframe/testing/templates/**/*.tmpl"),
    ]
    texts = [path.read_text("utf-8") for path in sources]
    return [*texts, (root / "docs" / "plugins.md").read_text("utf-8")]


@pytest.mark.parametrize("name", OBSERVED)
def test_every_event_and_each_field_of_it_is_read_by_an_observer_in_this_repository(name):
    event = getattr(events, getattr(Specification, name).__annotations__["event"])
    body = rf"def {name}\(.*?(?=\n    @|\n    def |\n\n\n|\n```|\Z)"
    read = "\n".join(found for text in readers() for found in re.findall(body, text, re.DOTALL))
    assert read
    for field in dataclasses.fields(event):
        assert f"event.{field.name}" in read, f"{event.__name__}.{field.name}"
