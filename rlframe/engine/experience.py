"""From judged responses to what PPO learns from: KL, token rewards, advantages, returns."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from rlframe.distributed.runtime import out_of_memory
from rlframe.engine.batching import Schedule
from rlframe.errors import RunError
from rlframe.functional import kl as kl_estimators
from rlframe.functional.masked import Moments, masked_sum, moments, whiten
from rlframe.functional.rewards import penalised, response_mask
from rlframe.models.actor_critic import ActorCritic
from rlframe.models.policy import Policy, exact_kl
from rlframe.types import KLMeasurement, Rollout, Sequences

Reduce = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Experience:
    """One rank's share of a rollout, ready to learn from. All tensors but `sequences` are [B, T]."""

    sequences: Sequences
    mask: Tensor
    logprobs: Tensor
    """log π when the tokens were sampled, nats."""
    reference: Tensor
    """log π_ref, nats."""
    values: Tensor
    kl: Tensor
    """The estimate that the penalty used, nats a token."""
    rewards: Tensor
    """Score and KL penalty, after any whitening."""
    advantages: Tensor
    returns: Tensor
    schedule: Schedule
    update: int

    def rows(self, index: list[int]) -> Experience:
        """These responses alone, trimmed to the longest sequence and response among them."""
        chosen = torch.tensor(index, device=self.mask.device)
        batch = self.sequences.rows(chosen)
        width = int(batch.response_lengths.max())
        parts = {name: getattr(self, name)[chosen, :width] for name in _COLUMNS}
        return Experience(batch, **parts, schedule=self.schedule, update=self.update)

    def nothing(self) -> Experience:
        """One response that counts for nothing: what a rank works on when it has no rows left."""
        blank = self.rows([0])
        zeros = {name: torch.zeros_like(getattr(blank, name)[:, :1]) for name in _COLUMNS}
        one = torch.ones_like(blank.sequences.prompt_lengths)
        sequences = Sequences(blank.sequences.tokens[:, :2], one, one)
        return Experience(sequences, **zeros, schedule=self.schedule, update=self.update)

    def measured(self, unit: str, reduce: Reduce) -> KLMeasurement:
        """KL of this rollout over all ranks.

        Args:
          unit: "nats_per_response" or "nats_per_token": what `.kl` is in.
          reduce: sums a tensor over ranks.
        """
        local = [masked_sum(self.kl.double(), self.mask), self.mask.sum(), len(self.mask)]
        total, tokens, responses = reduce(
            torch.stack([torch.as_tensor(x, dtype=torch.float64).cpu() for x in local])
        ).tolist()
        per = {"nats_per_response": total / responses, "nats_per_token": total / tokens}
        return KLMeasurement(kl=per[unit], responses=int(responses), **per)


_COLUMNS = ("mask", "logprobs", "reference", "values", "kl", "rewards", "advantages", "returns")


@dataclass(frozen=True)
class Crediting:
    """Turns a rollout and its rewards into experience.

    Args:
      models: policy and critic as they sampled.
      reference: the frozen policy.
      advantages: (rewards, values, mask) -> (advantages, returns), raw.
      reduce: sums a tensor over ranks.
      estimator: of the KL.
      penalty: whether -β KL goes into the rewards.
    """

    models: ActorCritic
    reference: Policy
    advantages: Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
    reduce: Reduce
    estimator: Literal["k1", "k2", "k3", "abs", "full"]
    penalty: bool
    whiten_rewards: bool
    whiten_advantages: bool

    @torch.no_grad()
    def __call__(
        self, rollout: Rollout, scores: Tensor, schedule: Schedule, *, beta: float
    ) -> Experience:
        """Credit each token.

        Args:
          rollout: this rank's responses.
          scores: [B, T] rewards, usually on the last token alone.
          schedule: the optimiser steps that will be made of it.
          beta: score units per nat.
        """
        batch = rollout.sequences
        lengths = batch.response_lengths
        mask = response_mask(lengths, width=int(lengths.max()))
        seen = self._evaluate(batch, mask, schedule)
        kl = seen["kl"]
        rewards = penalised(scores, kl, coefficient=beta) if self.penalty else scores
        rewards = rewards.to(seen["values"].dtype)
        self._refuse_infinite(rewards, scores, kl, mask, beta=beta, update=rollout.update)
        if self.whiten_rewards:
            rewards = whiten(rewards, mask, center=False, over=self._moments(rewards, mask))
        advantages, returns = self.advantages(rewards, seen["values"], mask)
        if self.whiten_advantages:
            advantages = whiten(advantages, mask, center=True, over=self._moments(advantages, mask))
        return Experience(
            sequences=batch,
            mask=mask,
            **seen,
            rewards=rewards,
            advantages=advantages,
            returns=returns,
            schedule=schedule,
            update=rollout.update,
        )

    def _refuse_infinite(
        self, rewards: Tensor, scores: Tensor, kl: Tensor, mask: Tensor, *, beta: float, update: int
    ) -> None:
        """Scores are finite each by itself; their mix, in the precision of values, need not be.

        Collective: call on all ranks. All raise, or none would be left for the others to wait for.

        Raises:
          RunError: some token reward is not finite on any rank.
        """
        if not int(self.reduce((~rewards.isfinite() & mask).sum().double())):
            return
        score, nats = (float(x.abs().masked_fill(~mask, 0).max()) for x in (scores, kl))
        penalty = f", and a KL of up to {nats:.3g} nats times {beta:.3g}" if self.penalty else ""
        raise RunError(
            f"update {update}: the rewards of tokens are not finite in {rewards.dtype}. They are made "
            f"of scores of up to {score:.3g} (on this rank){penalty}. Lower the `weight` of the reward "
            "that is so large, or set its `normalize`"
        )

    def _moments(self, x: Tensor, mask: Tensor) -> Moments:
        return Moments(*self.reduce(torch.stack(moments(x, mask))))

    def _evaluate(self, batch: Sequences, mask: Tensor, schedule: Schedule) -> dict[str, Tensor]:
        """Log-probabilities of both policies, values and KL, in the passes of the first epoch.

        The same rows in the same rectangles as in training: before the first update, every ratio
        is exactly 1 and the KL to an equal reference exactly 0, not merely close. A pass for which
        there is no memory is halved.
        """
        found: dict[str, Tensor] = {}
        passes = [rows for step in schedule.steps(0) for rows in step if rows]
        while passes:
            rows = passes.pop()
            index = torch.tensor(rows, device=mask.device)
            try:
                values = self._one_pass(batch.rows(index))
            except Exception as error:
                if not out_of_memory(error):
                    raise
                if len(rows) == 1:
                    raise RunError(
                        f"no memory was left to credit a single response: {error}. Make "
                        "ppo.logits_chunk smaller, or choose another runtime.strategy or "
                        "runtime.frozen: `rlframe plan RECIPE` says what fits"
                    ) from error
                passes += [rows[: len(rows) // 2], rows[len(rows) // 2 :]]
                continue
            for name, value in values.items():
                whole = found.setdefault(name, value.new_zeros(mask.shape))
                whole[index, : value.shape[1]] = value
        return found

    def _one_pass(self, part: Sequences) -> dict[str, Tensor]:
        seen = self.models.evaluate(part)
        reference, _ = self.reference.response_logprobs(part, self.reference.trunk(part))
        return {
            "logprobs": seen.logprobs,
            "reference": reference,
            "values": seen.values,
            "kl": self._kl(part, seen.logprobs, reference),
        }

    def _kl(self, batch: Sequences, logprobs: Tensor, reference: Tensor) -> Tensor:
        if self.estimator == "full":
            return exact_kl(self.models.policy, self.reference, batch)
        return kl_estimators.ESTIMATORS[self.estimator](logprobs, reference)
