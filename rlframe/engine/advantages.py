"""Credit assignment: the advantage estimator, whose answer becomes the targets of policy and critic."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from rlframe.api.answers import ContractError
from rlframe.api.component import AdvantageEstimator, Instance
from rlframe.api.contract import credited
from rlframe.errors import RunError
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

    def assign(self, rewards: Tensor, values: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """(advantages, returns), [B, T] each.

        Args:
          rewards: [B, T] reward of each token, KL penalty included.
          values: [B, T] the critic's estimate before each token.
          mask: [B, T] bool.

        Raises:
          RunError: the estimator raised, returned something else, or changed what it was given.
        """
        given = {"rewards": rewards, "values": values, "mask": mask}
        kept = {name: tensor.clone() for name, tensor in given.items()}
        with self.relay.named("advantage estimator", self.estimator):
            answer = self.relay.hook.rlframe_compute_advantages(
                estimator=self.estimator.component, **given
            )
        around = self.relay.around("rlframe_compute_advantages")
        whose = f"advantage estimator {self.estimator}{around}"
        for name, before in kept.items():
            # NaN equals nothing, and a diverged critic gives it.
            if not bool(((given[name] == before) | (before != before)).all()):
                raise RunError(
                    f"{whose} changed the {name} that it was given, which are used after it; work on "
                    "new tensors, as `masked_fill` makes one and `x[~mask] = 0` does not"
                )
        try:
            return credited(answer, rewards, values, mask)
        except ContractError as error:
            raise RunError(f"{whose} {error}") from error
