"""Asking an advantage estimator, whose answer becomes the policy's and the critic's targets."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from rlframe.api.answers import ContractError
from rlframe.api.component import AdvantageEstimator, Instance
from rlframe.api.contract import credited
from rlframe.errors import RunError
from rlframe.registry.relay import Relay


def estimated(
    relay: Relay,
    estimator: Instance[AdvantageEstimator[Any]],
    rewards: Tensor,
    values: Tensor,
    mask: Tensor,
) -> tuple[Tensor, Tensor]:
    """(advantages, returns), [B, T] each, as the contract wants them.

    Args:
      relay: the estimator is called through it.
      estimator: of the recipe.
      rewards: [B, T] reward of each token, KL penalty included.
      values: [B, T] the critic's estimate before each token.
      mask: [B, T] bool.

    Raises:
      RunError: it raised, returned something else, or changed what it was given.
    """
    given = {"rewards": rewards, "values": values, "mask": mask}
    kept = {name: tensor.clone() for name, tensor in given.items()}
    with relay.named("advantage estimator", estimator):
        answer = relay.hook.rlframe_compute_advantages(estimator=estimator.component, **given)
    whose = f"advantage estimator {estimator}{relay.around('rlframe_compute_advantages')}"
    for name, before in kept.items():
        # NaN equals nothing, and a diverged critic gives it.
        if not bool(((given[name] == before) | (before != before)).all()):
            raise RunError(
                f"{whose} changed the {name} that it was given, which are used after it; work on new "
                "tensors, as `masked_fill` makes one and `x[~mask] = 0` does not"
            )
    try:
        return credited(answer, rewards, values, mask)
    except ContractError as error:
        raise RunError(f"{whose} {error}") from error
