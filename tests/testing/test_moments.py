"""The calls and events that hook plugins are tried with are those of a run."""

import dataclasses

import pytest

from rlframe.api import HookPlugin, PluginConfig, RewardName, hookimpl
from rlframe.registry.lint import HOOKS
from rlframe.testing import Subject, check_component, tiny_context
from rlframe.testing.checks.hook import OBSERVERS
from rlframe.testing.moments import component_calls, finished, observed, started, unusual_calls


@pytest.fixture(scope="module")
def context():
    return tiny_context()


def test_every_hook_is_called_or_told(context, tmp_path):
    calls = [call.hook for call in component_calls(context, "reward")]
    events = [f"rlframe_{name}" for name, _ in observed(context, tmp_path, "reward")]
    events += ["rlframe_run_started", "rlframe_run_finished"]
    assert set(calls) | set(events) == set(HOOKS)
    assert set(events) == OBSERVERS
    assert len(calls) == len(set(calls))


def test_what_the_components_answer_keeps_their_contracts(context):
    for call in component_calls(context, "reward"):
        call.read(call.directly())
        for what, unusual in unusual_calls(call):
            answer = unusual.directly()
            unusual.read(answer)
            assert answer is not None or what.startswith("None"), what


def test_events_are_frozen_and_name_the_reward_of_the_recipe(context, tmp_path):
    events = [
        started(tmp_path, "brief"),
        *(event for _, event in observed(context, tmp_path, "brief")),
        finished(),
    ]
    for event in events:
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(event, dataclasses.fields(event)[0].name, None)
    assert set(events[0].resolved["rewards"]) == {"brief"}
    metrics = [event.figures for event in events if hasattr(event, "figures")]
    assert all("reward/brief/raw" in figures for figures in metrics)
    assert ["val/clipfrac_avg" in figures for figures in metrics] == [True, False]


class Around(PluginConfig):
    rewards: tuple[RewardName, ...]


class DoublesItsRewards(HookPlugin[Around]):
    """Wrong, but only for the rewards that its config names."""

    @hookimpl(wrapper=True)
    def rlframe_score(self, provider):
        scores = yield
        return scores * 2 if provider.name in self.config.rewards else scores


def test_the_reward_is_one_that_the_config_names():
    found = check_component(Subject(DoublesItsRewards, {"rewards": ["brief", "other"]}))
    (failed,) = [r for r in found if r.check == "answers_keep_the_contract"]
    assert failed.outcome == "failed"
    assert "returned 20 values for 10 responses" in failed.message


class Silent(HookPlugin[PluginConfig]):
    """Observes nothing but the end."""

    @hookimpl
    def rlframe_run_finished(self):
        return None


def test_checks_of_calls_do_not_apply_to_an_observer():
    outcomes = {r.check: (r.outcome, r.message) for r in check_component(Subject(Silent))}
    assert outcomes["answers_keep_the_contract"][0] == "skipped"
    assert "no call of a component" in outcomes["errors_come_through"][1]
    assert outcomes["observes_every_event"][0] == "ok"
    assert not [name for name, (outcome, _) in outcomes.items() if outcome == "failed"]
