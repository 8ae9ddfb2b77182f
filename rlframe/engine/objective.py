"""The one loss that is differentiated: PPO's two clipped losses, KL if it is a loss, auxiliaries.

Losses arrive unreduced. This is the only place that divides, by the token counts of the *whole*
optimiser step over all ranks, so that any split into micro-batches or ranks gives the same gradient.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from rlframe.api.algorithm import PolicyLoss, ValueLoss
from rlframe.api.answers import ContractError
from rlframe.api.component import AuxiliaryLoss, Instance
from rlframe.api.contract import counted, refuse_bad_term, token_loss
from rlframe.api.unchanged import Given
from rlframe.batches import PolicyLossBatch, TokenLoss, ValueLossBatch
from rlframe.engine.experience import Experience
from rlframe.engine.metrics import Meter
from rlframe.errors import RunError
from rlframe.functional import kl as kl_estimators
from rlframe.functional.losses import Reduction, policy_ratio, token_weights
from rlframe.functional.masked import masked_sum
from rlframe.models.actor_critic import ActorCritic, TokenOutputs
from rlframe.registry.owners import component_errors
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
    """Tokens of valid responses."""
    policy: float
    """What the policy's loss and KL are divided by: tokens or responses, by the reduction."""
    auxiliary: Mapping[str, float]
    """Auxiliary loss name -> what it counts."""

    @property
    def nothing(self) -> bool:
        """Whether nothing counts: such a step would move weights by the optimiser's memory alone."""
        return not (self.policy or any(self.auxiliary.values()))


@dataclass(frozen=True)
class Objective:
    """Computes the loss of a micro-batch and the sums that metrics are made of.

    Args:
      relay: losses are called through it.
      policy: the loss of the policy.
      value: the loss of the critic; None without one.
      value_coefficient: what the critic's loss is multiplied with.
      reduction: how much a token weighs, see `functional.losses.token_weights`.
      max_new_tokens: the longest response that can be sampled.
      auxiliary: the losses of the recipe with a coefficient other than 0.
      kl_loss: the estimator if KL is a loss, else None.
    """

    relay: Relay
    policy: Instance[PolicyLoss[Any]]
    value: Instance[ValueLoss[Any]] | None
    value_coefficient: float
    reduction: Reduction
    max_new_tokens: int
    auxiliary: tuple[Instance[AuxiliaryLoss[Any]], ...]
    kl_loss: str | None
    _bounded: dict[str, bool] = field(default_factory=dict, init=False)
    """Which loss returned `clipped` at first."""

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
            loss = loss + self._ppo(models, batch.experience, over, meter, kl_coefficient)
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
                    loss = loss + _coefficient(instance) * total / count
        return loss, meter

    def count(self, mask: Tensor) -> Tensor:
        """What the policy's loss is divided by in a part of the step: its tokens or its responses."""
        return token_weights(mask, reduction=self.reduction, max_new_tokens=self.max_new_tokens)[1]

    def _ppo(
        self,
        models: ActorCritic,
        exp: Experience,
        over: Normaliser,
        meter: Meter,
        kl_coefficient: float,
    ) -> Tensor:
        """The part of policy, value and KL loss that this micro-batch has."""
        now, mask = models.evaluate(exp.sequences), exp.mask
        ratio = policy_ratio(now.logprobs, exp.logprobs)
        loss = self._policy_loss(now, exp, meter)
        if self.kl_loss is not None:
            estimate = kl_estimators.ESTIMATORS[self.kl_loss](now.logprobs, exp.reference)
            kl = kl_estimators.straight_through(estimate, now.logprobs, exp.reference, ratio)
            loss = loss + kl_coefficient * self._weighed(kl, exp)
            meter.tokens("loss/kl_avg", kl, mask)
        total = loss / max(over.policy, 1)  # 0 / 1 in a step without a valid response
        if now.values is not None:
            value = self._value_loss(now.values, exp, meter)
            total = total + self.value_coefficient * value / max(over.tokens, 1)
        if over.nothing:
            # A gradient that is not finite, by which every strategy leaves out a step and keeps the
            # optimiser's moments. NaN times `total` would be 0 behind its masks.
            total = total + math.nan * now.logprobs.sum()
        with torch.no_grad():
            meter.tokens("policy/approxkl_avg", 0.5 * (now.logprobs - exp.logprobs) ** 2, mask)
            meter.tokens("policy/entropy_avg", now.entropy, mask)
            meter.tokens("val/ratio", ratio, mask)
            # The variance is taken around 1, where the numbers are, and shifted at the end.
            meter.tokens("ratio_square", (ratio.double() - 1) ** 2, mask)
        return total

    def _weighed(self, loss: Tensor, exp: Experience) -> Tensor:
        """Σ of the weights of tokens times their loss.

        The weights that correct for another sampler are not counted: Σ_t w_t loss_t / Σ_t 1 estimates
        the policy's own mean, since E_q[w] = 1.
        """
        weights, _ = token_weights(
            exp.mask, reduction=self.reduction, max_new_tokens=self.max_new_tokens
        )
        if exp.importance is not None:
            loss = exp.importance * loss
        return masked_sum(weights.to(loss.dtype) * loss, exp.mask)

    def _policy_loss(self, now: TokenOutputs, exp: Experience, meter: Meter) -> Tensor:
        batch = PolicyLossBatch(now.logprobs, exp.logprobs, exp.advantages, now.entropy, exp.mask)
        given = Given(batch=batch)
        with self.relay.named("policy loss", self.policy, "loss"):
            answer = self.relay.hook.rlframe_policy_loss(loss=self.policy.component, batch=batch)
        term = self._checked("policy loss", self.policy, answer, now.logprobs, given)
        meter.tokens("loss/policy_avg", term.loss, exp.mask)
        if term.clipped is not None:
            meter.tokens("policy/clipfrac_avg", term.clipped, exp.mask)
        return self._weighed(term.loss, exp)

    def _value_loss(self, values: Tensor, exp: Experience, meter: Meter) -> Tensor:
        """Σ of the critic's loss over tokens."""
        assert self.value is not None
        assert exp.values is not None
        assert exp.returns is not None
        batch = ValueLossBatch(values, exp.values, exp.returns, exp.mask)
        given = Given(batch=batch)
        with self.relay.named("value loss", self.value, "loss"):
            answer = self.relay.hook.rlframe_value_loss(loss=self.value.component, batch=batch)
        term = self._checked("value loss", self.value, answer, values, given)
        meter.tokens("loss/value_avg", term.loss, exp.mask)
        if term.clipped is not None:
            meter.tokens("val/clipfrac_avg", term.clipped, exp.mask)
        return masked_sum(term.loss, exp.mask)

    def _checked(
        self, noun: str, instance: Instance[Any], answer: Any, like: Tensor, given: Given
    ) -> TokenLoss:
        try:
            given.refuse_change()
            term = token_loss(answer, like)
            bounded = term.clipped is not None
            # Or ranks would sum up different metrics with each other.
            if self._bounded.setdefault(noun, bounded) != bounded:
                raise ContractError(
                    "returned `clipped` for one micro-batch and None for another; return it for every "
                    "one or for none"
                )
            return term
        except ContractError as error:
            around = self.relay.around(f"rlframe_{noun.replace(' ', '_')}")
            raise RunError(f"{noun} {instance}{around} {error}") from error

    def _auxiliary(
        self,
        models: ActorCritic,
        instance: Instance[AuxiliaryLoss[Any]],
        tokens: TokenBatch,
        meter: Meter,
    ) -> Tensor:
        given = Given(batch=tokens)
        with self.relay.named("auxiliary loss", instance, "loss"):
            term = self.relay.hook.rlframe_auxiliary_loss(
                loss=instance.component, policy=models.policy, batch=tokens
            )
        try:
            given.refuse_change()
            refuse_bad_term(term, count_of(instance, tokens))
        except ContractError as error:
            around = self.relay.around("rlframe_auxiliary_loss")
            raise RunError(f"auxiliary loss {instance}{around} {error}") from error
        meter.add(f"loss/{instance.name}_avg", term.total, term.count)
        total: Tensor = term.total
        return total


def _coefficient(instance: Instance[AuxiliaryLoss[Any]]) -> float:
    with component_errors(f"auxiliary loss {instance}", instance.component, "coefficient"):
        return instance.component.coefficient


def count_of(instance: Instance[AuxiliaryLoss[Any]], tokens: TokenBatch) -> float:
    """What an auxiliary loss counts in a part of its data.

    Raises:
      RunError: it raised, or said something else than a number.
    """
    with component_errors(f"auxiliary loss {instance}", instance.component, "count"):
        count = instance.component.count(tokens)
    try:
        return counted(count, "`count()`")
    except ContractError as error:
        raise RunError(f"auxiliary loss {instance} {error}") from error
