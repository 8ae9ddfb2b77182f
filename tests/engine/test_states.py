"""States of components on their way into a checkpoint and back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from rlframe.api.component import Component
from rlframe.engine.states import ComponentStates, component_states, restore_states
from rlframe.errors import RecipeError, RunError


class Remembers(Component[Any]):
    def __init__(self, state: Any, error: BaseException | None = None) -> None:
        self.state, self.error = state, error

    def state_dict(self) -> Mapping[str, Any]:
        if self.error is not None:
            raise self.error
        return self.state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        if self.error is not None:
            raise self.error
        self.state = state


def test_what_components_remember_comes_back() -> None:
    there = {"a": Remembers({"sum": 1.5, "seen": [1, 2]}), "b": Remembers({})}
    back = {"a": Remembers(None), "c": Remembers("untouched")}
    restore_states(back, component_states(there))
    assert back["a"].state == {"sum": 1.5, "seen": [1, 2]}
    assert back["c"].state == "untouched"


@pytest.mark.parametrize(
    ("state", "words"),
    [
        ({"seen": {1}}, "/seen: a set cannot be saved"),
        ({"seen": (1,)}, "/seen: a tuple cannot be saved"),
        ({"by": {3: 1}}, "/by: the key 3 is no str"),
        ({"text": "\ud800"}, "/text: .* is not Unicode text"),
        ([1], r"state_dict returned \[1\], and not a mapping"),
        (None, "state_dict returned None"),
    ],
)
def test_a_state_that_no_checkpoint_could_keep_is_named(state: Any, words: str) -> None:
    with pytest.raises(RunError, match=f"rewards.mine: .*{words}"):
        component_states({"rewards.mine": Remembers(state)})


def test_what_a_component_raises_has_its_name_and_place() -> None:
    broken = {"rewards.mine": Remembers({}, KeyError("sum"))}
    message = (
        r"mine: component \(class Remembers\) raised KeyError in `{}`: 'sum' \[.*_states.py:\d+\]"
    )
    with pytest.raises(RunError, match=message.format("state_dict")):
        component_states(broken)
    with pytest.raises(
        RunError, match=message.format("load_state_dict") + ". Has its code changed"
    ):
        restore_states(broken, {"rewards.mine": {"sum": 1}})
    leaves = {"rewards.mine": Remembers({}, SystemExit(0))}
    with pytest.raises(RunError, match=r"rewards.mine: .* called sys.exit\(0\)"):
        component_states(leaves)
    own = {"rewards.mine": Remembers({}, RecipeError("its own words"))}
    with pytest.raises(RecipeError, match=r"^its own words$"):
        component_states(own)


def test_each_rank_takes_its_own_state_and_one_that_there_was_not_that_of_the_first() -> None:
    saved = {"ranks": [{"rewards.a": {"seen": 1}}, {"rewards.a": {"seen": 2}}]}
    found = []
    for rank in range(4):
        component = Remembers({})
        ComponentStates({"rewards.a": component}, lambda mine: [mine], rank).load_state_dict(saved)
        found.append(component.state["seen"])
    assert found == [1, 2, 1, 1]


def test_the_states_of_all_ranks_are_kept() -> None:
    component = Remembers({"seen": 3})
    kept = ComponentStates({"rewards.a": component}, lambda mine: [{"theirs": 0}, mine], 1)
    assert kept.state_dict() == {"ranks": [{"theirs": 0}, {"rewards.a": {"seen": 3}}]}
