"""The checks, one list for each kind: everything else only runs them."""

from __future__ import annotations

from typing import Any

from rlframe.api.component import Component
from rlframe.registry.discovery import KINDS
from rlframe.testing.check import Check
from rlframe.testing.checks.advantage import ADVANTAGE
from rlframe.testing.checks.controller import CONTROLLER
from rlframe.testing.checks.generator import GENERATOR
from rlframe.testing.checks.hook import HOOK
from rlframe.testing.checks.loss import LOSS
from rlframe.testing.checks.policy_loss import POLICY_LOSS
from rlframe.testing.checks.reward import REWARD
from rlframe.testing.checks.sampler import SAMPLER
from rlframe.testing.checks.transform import TRANSFORM
from rlframe.testing.checks.value_loss import VALUE_LOSS

CHECKS: dict[str, tuple[Check, ...]] = {
    "data_generators": GENERATOR,
    "reward_providers": REWARD,
    "kl_controllers": CONTROLLER,
    "auxiliary_losses": LOSS,
    "reward_transforms": TRANSFORM,
    "advantage_estimators": ADVANTAGE,
    "policy_losses": POLICY_LOSS,
    "value_losses": VALUE_LOSS,
    "samplers": SAMPLER,
    "hooks": HOOK,
}
"""Kind -> its checks, in the order in which they are best read."""


def checks_of(component: type[Component[Any]]) -> tuple[Check, ...]:
    """The checks for a component, by the base class that it has.

    Raises:
      TypeError: it is of no kind that the kit knows.
    """
    for kind, checks in CHECKS.items():
        if issubclass(component, KINDS[kind][0]):
            return checks
    bases = ", ".join(KINDS[kind][0].__name__ for kind in CHECKS)
    raise TypeError(f"{component.__name__} is none of {bases}: the kit has no checks for it")
