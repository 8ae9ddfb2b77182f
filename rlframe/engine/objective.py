"""The one loss that is differentiated: PPO's two clipped losses, KL if it is a loss, auxiliaries.

Losses arrive unreduced. This is the only place that divides, by the token counts of the *whole*
optimiser step over all ranks, so that any split into micro-batches or ranks gives the same gradient.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rlframe.api.answers import ContractError
from rlframe.api.component import AuxiliaryLoss, Instance
from rlframe.api.contract import counted, refuse_bad_term
from rlframe.engine.experience import Experience
from rlframe.engine.metrics import Meter
from rlframe.errors import RunError, place_of
from rlframe.functional import kl as kl_estimators
from rlframe.functional.losses import clipped_policy_loss, clipped_value_loss, policy_ratio
from rlframe.functional.masked import masked_sum
from rlframe.models.actor_critic import ActorCritic
from rlframe.registry.relay import Relay
from rlframe.types import TokenBatch


class NothingCountedWarning(RuntimeWarning):
    """An optimiser step holds nothing that an auxiliary loss counts."""


@dataclass(frozen=True)
class MicroBatch:
    """What one forward and backward pass works on; either part may be missing."""

    experience: Experience | None
    auxiliary: Mapping[str, TokenBatch]
    """Auxiliary loss name -> its share of the tokens."""


@dataclass(frozen=True)
class Normaliser:
    """Counts of the whole optimiser step over all ranks and micro-batches."""

    tokens: float
    """Response tokens."""
    auxiliary: Mapping[str, float]
    """Auxiliary loss name -> what it counts."""


@dataclass(frozen=True)
class Objective:
    """Computes the loss of a micro-batch and the sums that metrics are made of.

    Args:
      relay: auxiliary losses are called through it.
      auxiliary: the losses of the recipe with a coefficient other than 0.
      kl_loss: the estimator if KL is a loss, else None.
    """

    relay: Relay
    auxiliary: tuple[Instance[AuxiliaryLoss[Any]], ...]
    clip: float
    value_clip: float
    value_coefficient: float
    kl_loss: str | None

    def __call__(
        self, models: ActorCritic, batch: MicroBatch, over: Normaliser, kl_coefficient: float
    ) -> tuple[Tensor, Meter]:
        """(loss, sums): this micro-batch's part of the step's loss, already divided.

        Args:
          models: run inside the forward pass of whatever wraps them.
          batch: rows of the rollout, and of the auxiliary losses' data.
          over: what to divide by.
          kl_coefficient: weight of the KL loss, score units per nat.
        """
        meter = Meter()
        loss = next(models.parameters()).new_zeros(())
        if batch.experience is not None:
            loss = loss + self._ppo(models, batch.experience, meter, kl_coefficient) / over.tokens
        for instance in self.auxiliary:
            tokens = batch.auxiliary.get(instance.name)
            if tokens is not None:
                total = self._auxiliary(models, instance, tokens, meter)
                count = over.auxiliary[instance.name]
                if count == 0:  # 0 / 0 would make a step that PPO could take one that is skipped
                    warnings.warn(
                        f"auxiliary loss {instance} counts nothing in this optimiser step, on any "
                        f"rank, and adds nothing to it",
                        NothingCountedWarning,
                        stacklevel=2,
                    )
                    loss = loss + 0 * total  # what autograd goes through, and engines wait for
                else:
                    loss = loss + instance.component.coefficient * total / count
        return loss, meter

    def _ppo(
        self, models: ActorCritic, exp: Experience, meter: Meter, kl_coefficient: float
    ) -> Tensor:
        """Σ over this micro-batch's tokens of policy, value and KL loss."""
        now, mask = models.evaluate(exp.sequences), exp.mask
        ratio = policy_ratio(now.logprobs, exp.logprobs)
        policy, clipped = clipped_policy_loss(ratio, exp.advantages, clip=self.clip)
        value, value_clipped = clipped_value_loss(
            now.values, exp.values, exp.returns, clip=self.value_clip
        )
        total = masked_sum(policy, mask) + self.value_coefficient * masked_sum(value, mask)
        if self.kl_loss is not None:
            estimate = kl_estimators.ESTIMATORS[self.kl_loss](now.logprobs, exp.reference)
            kl = kl_estimators.straight_through(estimate, now.logprobs, exp.reference, ratio)
            total = total + kl_coefficient * masked_sum(kl, mask)
            meter.tokens("loss/kl_avg", kl, mask)
        with torch.no_grad():
            meter.tokens("policy/approxkl_avg", 0.5 * (now.logprobs - exp.logprobs) ** 2, mask)
            meter.tokens("policy/clipfrac_avg", clipped, mask)
            meter.tokens("policy/entropy_avg", now.entropy, mask)
            meter.tokens("loss/policy_avg", policy, mask)
            meter.tokens("loss/value_avg", value, mask)
            meter.tokens("val/clipfrac_avg", value_clipped, mask)
            meter.tokens("val/ratio", ratio, mask)
            # The variance is taken around 1, where the numbers are, and shifted at the end.
            meter.tokens("ratio_square", (ratio.double() - 1) ** 2, mask)
        return total

    def _auxiliary(
        self,
        models: ActorCritic,
        instance: Instance[AuxiliaryLoss[Any]],
        tokens: TokenBatch,
        meter: Meter,
    ) -> Tensor:
        with self.relay.named("auxiliary loss", instance):
            term = self.relay.hook.rlframe_auxiliary_loss(
                loss=instance.component, policy=models.policy, batch=tokens
            )
        try:
            refuse_bad_term(term, count_of(instance, tokens))
        except ContractError as error:
            around = self.relay.around("rlframe_auxiliary_loss")
            raise RunError(f"auxiliary loss {instance}{around} {error}") from error
        meter.add(f"loss/{instance.name}_avg", term.total, term.count)
        total: Tensor = term.total
        return total


def count_of(instance: Instance[AuxiliaryLoss[Any]], tokens: TokenBatch) -> float:
    """What an auxiliary loss counts in a part of its data.

    Raises:
      RunError: it raised, or said something else than a number.
    """
    component = instance.component
    try:
        return counted(component.count(tokens), "`count()`")
    except ContractError as error:
        raise RunError(f"auxiliary loss {instance} {error}") from error
    except Exception as error:
        raise RunError(
            f"auxiliary loss {instance} raised {type(error).__name__} in `count`: {error} "
            f"[{place_of(error, type(component).__module__)}]"
        ) from error
