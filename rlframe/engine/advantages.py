"""Credit assignment: the advantage estimator, whose answer becomes the targets of policy and critic."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rlframe.api.algorithm import AdvantageEstimator, EstimatorNeeds
from rlframe.api.answers import ContractError
from rlframe.api.component import Instance
from rlframe.api.contract import credited
from rlframe.api.unchanged import Given
from rlframe.batches import Credit, CreditBatch
from rlframe.errors import RunError
from rlframe.registry.owners import component_errors
from rlframe.registry.relay import Relay


@dataclass(frozen=True)
class CreditAssignment:
    """The advantage estimator of a recipe, held to its contract.

    Args:
      estimator: of the recipe.
      relay: the estimator is called through it.
    """

    estimator: Instance[AdvantageEstimator[Any]]
    relay: Relay

    @property
    def needs(self) -> EstimatorNeeds:
        """What the estimator declares for its config."""
        component = self.estimator.component
        with component_errors(f"advantage estimator {self.estimator}", component, "needs"):
            return type(component).needs(component.config)

    def assign(self, batch: CreditBatch) -> Credit:
        """Advantages and returns, as the contract wants them.

        Raises:
          RunError: the estimator raised, returned something else, or changed what it was given.
        """
        given = Given(batch=batch)
        with self.relay.named("advantage estimator", self.estimator, "estimate"):
            answer = self.relay.hook.rlframe_compute_advantages(
                estimator=self.estimator.component, batch=batch
            )
        around = self.relay.around("rlframe_compute_advantages")
        whose = f"advantage estimator {self.estimator}{around}"
        try:
            given.refuse_change()
            return credited(answer, batch)
        except ContractError as error:
            raise RunError(f"{whose} {error}") from error
