"""The engine's side of a KL controller: its contract, bounds, finiteness, agreement between ranks."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from rlframe.api.answers import ContractError
from rlframe.api.component import Instance, KLController
from rlframe.api.contract import (
    as_json,
    is_finite,
    out_of_bounds,
    refuse_bad_start,
    refuse_bad_state,
)
from rlframe.api.unchanged import Given
from rlframe.engine.experience import Experience
from rlframe.errors import RecipeError, RunError
from rlframe.registry.owners import component_errors
from rlframe.registry.relay import Relay
from rlframe.types import KLMeasurement, KLState

MOST_KEPT = 10
"""Rollouts in a row after which a controller may return a state that is not finite; one more ends
the run."""


def _alone(value: str) -> list[str]:
    return [value]


def _unchanged(x: Tensor) -> Tensor:
    return x


@dataclass
class KLControl:
    """A controller within the recipe's bounds.

    Args:
      controller: pure; its state is handed in and comes out.
      relay: the controller is called through it.
      minimum: lower bound of the KL coefficient, score units per nat.
      maximum: upper bound.
      gather: every rank's value, on every rank.
      reduce: sums a tensor over ranks.
    """

    controller: Instance[KLController[Any]]
    relay: Relay
    minimum: float
    maximum: float
    gather: Callable[[str], list[str]] = _alone
    reduce: Callable[[Tensor], Tensor] = _unchanged
    _kept: int = field(default=0, init=False)
    """Rollouts in a row whose new state was not finite, since the start or a resume."""

    @property
    def unit(self) -> str:
        """Unit in which the controller wants the KL."""
        return self.controller.component.unit

    def initial(self) -> KLState:
        """The state before the first rollout. Collective: call on all ranks.

        Raises:
          RecipeError: its coefficient is not within the bounds.
          RunError: the controller raised, or broke its contract.
        """
        controller = self.controller.component
        with component_errors(f"KL controller {self.controller}", controller, "initial"):
            unit, state = self.unit, controller.initial()
        try:
            refuse_bad_start(unit, state)
        except ContractError as error:
            raise RunError(f"KL controller {self.controller} {error} (`initial`)") from error
        beyond = out_of_bounds(state.coefficient, self.minimum, self.maximum)
        if beyond is not None:
            raise RecipeError(f"KL controller {self.controller} {beyond}")
        return self._agreed(_plain(state))

    def measure(self, experience: Experience) -> KLMeasurement:
        """KL of a rollout, in the controller's unit. Collective: call on all ranks."""
        return experience.measured(self.unit, self.reduce)

    def update(self, state: KLState, measured: KLMeasurement) -> KLState:
        """The next state; the old one stays if KL or the new state is not finite. Call on all ranks.

        Raises:
          RunError: the controller raised, broke its contract, has returned more than `MOST_KEPT` states
            in a row that were not finite, or differs between ranks.
        """
        if not math.isfinite(measured.kl):
            return state
        given = Given(state=state)
        with self.relay.named("KL controller", self.controller, "update"):
            new: KLState = self.relay.hook.rlframe_update_kl(
                controller=self.controller.component, state=state, measured=measured
            )
        self._refuse(new, "update", given)
        if is_finite(new):
            self._kept, new = 0, _plain(new)
            coefficient = min(max(new.coefficient, self.minimum), self.maximum)
            return self._agreed(replace(new, coefficient=coefficient))
        self._kept += 1
        if self._kept > MOST_KEPT:
            raise RunError(
                f"KL controller {self.controller} has returned a state that is not finite for "
                f"{self._kept} rollouts in a row, so that its coefficient was never adapted: {new} "
                f"after {state} and {measured}. Usual causes: the logarithm of KL or a division by "
                "it, as KL may be 0 and below"
            )
        return self._agreed(state)

    def _refuse(self, state: object, method: str, given: Given | None = None) -> None:
        try:
            if given is not None:
                given.refuse_change()
            refuse_bad_state(state)
        except ContractError as error:
            around = self.relay.around("rlframe_update_kl") if method == "update" else ""
            raise RunError(
                f"KL controller {self.controller}{around} {error} (`{method}`)"
            ) from error

    def _agreed(self, state: KLState) -> KLState:
        """The state, if every rank has the same: otherwise each would train another objective."""
        states = self.gather(as_json(state))
        other = [rank for rank, theirs in enumerate(states) if theirs != states[0]]
        if other:
            raise RunError(
                f"KL controller {self.controller} differs between ranks: [coefficient, memory] is "
                f"{states[other[0]]} on rank {other[0]} and {states[0]} on rank 0. All of them saw "
                "the same KL, so the controller reads something else: a clock, random numbers, "
                "its rank, or what it keeps on `self`"
            )
        return state


def _plain(state: KLState) -> KLState:
    """The same in what JSON and checkpoints give back: plain ints and floats in a dict."""
    memory = {name: v if type(v) is int else float(v) for name, v in state.memory.items()}
    return KLState(float(state.coefficient), memory)
