"""The plugins of the guide, which anybody could have written, keep the contract of their kind."""

import re
from pathlib import Path

import pytest

from rlframe.api import Component
from rlframe.testing import Subject, check_component

GUIDE = (Path(__file__).parents[2] / "docs" / "plugins.md").read_text()
CONFIGS = {
    "LengthReward": {"target_tokens": 20},
    "BangBang": {"initial": 0.1, "target": 6.0},
    "PTX": {"data": "reviews", "gamma": 0.5},
    "Distillation": {"teacher": "stage:sft"},
    "Squash": {"scale": 2.0},
    "RewardToGo": {},
    "EntropyBonus": {"bonus": 0.01},
    "Huber": {"delta": 1.0},
    "Politeness": {"model": "stage:reward_model"},
    "Sums": {"rows": 20},
    "Stopwatch": {},
}
SKIPS = {
    "BangBang": {"fixed_point": "it doubles or halves, and has no point of rest"},
    "Politeness": {"time_per_thousand": "to be short, it asks its model one response at a time"},
}


def plugin(name):
    for source in re.findall(r"```python\n(.*?)```", GUIDE, re.DOTALL):
        space = {"__name__": "guide"}
        exec(source, space)  # the documentation is ours
        if name in space:
            assert issubclass(space[name], Component)
            return space[name]
    raise LookupError(name)


@pytest.mark.parametrize("name", CONFIGS)
def test_a_plugin_of_the_guide_keeps_its_contract(name):
    subject = Subject(plugin(name), CONFIGS[name])
    skip = {
        "picklable_config": "pickle looks for the class in a module, and this text is none",
        **SKIPS.get(name, {}),
    }
    results = check_component(subject, skip=skip)
    assert not [result.message for result in results if result.outcome == "failed"]


def test_the_controller_without_a_point_of_rest_is_told_to_say_so():
    results = check_component(Subject(plugin("BangBang"), CONFIGS["BangBang"]))
    (result,) = [r for r in results if r.check == "fixed_point"]
    assert result.outcome == "failed"
    assert "skips this with that reason" in result.message
