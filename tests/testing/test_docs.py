"""The page about testing names every check in its own words, and its plugins keep their contract."""

import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

from rlframe.api import Component
from rlframe.testing import Subject, check_component
from rlframe.testing.checks import CHECKS
from rlframe.testing.suites import Suite

PAGE = (Path(__file__).parents[2] / "docs" / "testing.md").read_text()


@pytest.mark.parametrize("kind", CHECKS)
def test_every_check_is_documented_as_it_is_told(kind):
    for check in CHECKS[kind]:
        assert f"| `{check.name}` | {check.expected} |" in PAGE


def test_no_check_is_documented_that_there_is_not():
    table = PAGE[PAGE.index("## The checks") :]
    named = set(re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE))
    assert named == {check.name for checks in CHECKS.values() for check in checks}


@pytest.mark.parametrize("number", range(2))
def test_the_plugins_of_the_page_pass(number, monkeypatch):
    module = ModuleType("page")
    monkeypatch.setitem(sys.modules, "page", module)  # where pickle looks for the config
    exec(re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)[number], vars(module))
    classes = [value for value in vars(module).values() if isinstance(value, type)]
    own = [value for value in classes if value.__module__ == "page"]
    (component,) = [value for value in own if issubclass(value, Component)]
    suites = [value for value in own if issubclass(value, Suite)]
    subject = suites[0].subject() if suites else Subject(component)
    assert {result.outcome for result in check_component(subject)} == {"ok"}
