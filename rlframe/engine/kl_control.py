"""The engine's side of a KL controller: bounds, finiteness, and whose fault it was."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

from rlframe.errors import RunError
from rlframe.hooks.component import Instance, KLController
from rlframe.hooks.relay import Relay
from rlframe.types import KLMeasurement, KLState


@dataclass(frozen=True)
class KLControl:
    """A controller within the recipe's bounds.

    Args:
      controller: pure; its state is handed in and comes out.
      relay: the controller is called through it.
      minimum: lower bound of beta, score units per nat.
      maximum: upper bound.
    """

    controller: Instance[KLController[Any]]
    relay: Relay
    minimum: float
    maximum: float

    @property
    def unit(self) -> str:
        """Unit of the KL that the controller wants to be told."""
        return self.controller.component.unit

    def initial(self) -> KLState:
        """The state before the first rollout, within the bounds."""
        return self._bounded(self.controller.component.initial())

    def update(self, state: KLState, measured: KLMeasurement) -> KLState:
        """The next state; the old one stays if KL or the new coefficient is not finite.

        Raises:
          RunError: the controller raised, or returned something else than a state.
        """
        if not math.isfinite(measured.kl):
            return state
        with self.relay.named("KL controller", self.controller):
            new = self.relay.hook.rlframe_update_kl(
                controller=self.controller.component, state=state, measured=measured
            )
        if not isinstance(new, KLState):
            raise RunError(f"KL controller {self.controller} returned {new!r} instead of a KLState")
        return self._bounded(new) if math.isfinite(new.coefficient) else state

    def _bounded(self, state: KLState) -> KLState:
        return replace(state, coefficient=min(max(state.coefficient, self.minimum), self.maximum))
