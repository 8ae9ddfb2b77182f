"""The states of components, as checkpoints keep them: plain data, or an error that names one."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from rlframe.api.component import Component
from rlframe.errors import RunError
from rlframe.registry.owners import component_errors, in_words
from rlframe.runs.checkpointer import Stateful
from rlframe.runs.trees import check_tree


@dataclass(frozen=True)
class ComponentStates:
    """What the components of a recipe remember, on every rank.

    Args:
      components: by recipe path.
      gather: every rank's value, on every rank.
      rank: of this process.
    """

    components: Mapping[str, Component[Any]]
    gather: Callable[[dict[str, Any]], list[dict[str, Any]]]
    rank: int

    def state_dict(self) -> dict[str, Any]:
        """The states of each rank. Collective: call on all ranks.

        Raises:
          RunError: a component raised, or what it returned cannot be saved.
        """
        return {"ranks": self.gather(component_states(self.components))}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what `state_dict` gave; that of rank 0 where the run had fewer processes.

        Raises:
          RunError: a component does not take its state back.
        """
        ranks = state["ranks"]
        restore_states(self.components, ranks[self.rank] if self.rank < len(ranks) else ranks[0])


def component_states(components: Mapping[str, Stateful]) -> dict[str, dict[str, Any]]:
    """What each component, or stream of a component, remembers, by its recipe path.

    Raises:
      RunError: a component raised, or what it returned cannot be saved.
    """
    return {path: _state(path, component) for path, component in components.items()}


def _state(path: str, component: Stateful) -> dict[str, Any]:
    with component_errors(_who(path, component), component, "state_dict"):
        state: Any = component.state_dict()
    if not isinstance(state, Mapping):
        raise RunError(
            f"{path}: state_dict returned {state!r}, and not a mapping of names to values"
        )
    try:
        check_tree(dict(state))
        if isinstance(component, Component):  # a stream's cursor may hold tensors, as trees may
            json.dumps(dict(state))
    except (TypeError, ValueError) as error:
        raise RunError(
            f"{path}: its state cannot be saved, so that no checkpoint could: {error} "
            f"(in what state_dict of {type(component).__qualname__} returned)"
        ) from error
    return dict(state)


def restore_states(
    components: Mapping[str, Stateful], states: Mapping[str, Mapping[str, Any]]
) -> None:
    """Give components what they remembered; states of components that are gone are passed over.

    Raises:
      RunError: a component does not take its state back.
    """
    for path in components.keys() & states.keys():
        component = components[path]
        with component_errors(
            _who(path, component),
            component,
            "load_state_dict",
            hint=". Has its code changed since the checkpoint?",
        ):
            component.load_state_dict(states[path])


def _who(path: str, component: Stateful) -> str:
    stream = f"stream (class {type(component).__qualname__})"
    return f"{path}: {in_words(component) if isinstance(component, Component) else stream}"
