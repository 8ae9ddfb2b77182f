"""From scored and evaluated responses to what PPO learns from: token rewards, advantages, returns."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from rlframe.batches import CreditBatch, ScoreMoments
from rlframe.engine.advantages import CreditAssignment
from rlframe.engine.batching import Schedule
from rlframe.engine.evaluation import Evaluation
from rlframe.engine.scoring import Scores
from rlframe.errors import RunError
from rlframe.functional.losses import importance_weights
from rlframe.functional.masked import Moments, masked_sum, moments, whiten
from rlframe.functional.rewards import apply_kl_penalty, response_mask
from rlframe.functional.running import statistics
from rlframe.types import KLMeasurement, Rollout, Sequences

Reduce = Callable[[Tensor], Tensor]

_LIMIT = 2.0
"""`algorithm.importance_limit` if left out, that of Yao et al. 2025."""


@dataclass(frozen=True)
class Experience:
    """One rank's part of a rollout, ready to learn from. All tensors but `sequences` are [B, T]."""

    sequences: Sequences
    mask: Tensor
    """bool, True on the tokens of valid responses: what is learned from."""
    logprobs: Tensor
    """log π when the tokens were sampled, nats."""
    reference: Tensor
    """log π_ref, nats."""
    kl: Tensor
    """The estimate that the penalty used, nats per token."""
    rewards: Tensor
    """Score and KL penalty, after any whitening."""
    advantages: Tensor
    schedule: Schedule
    update: int
    values: Tensor | None = None
    """Of the critic when the tokens were sampled; None without one."""
    returns: Tensor | None = None
    """The critic's targets; None without one."""
    importance: Tensor | None = None
    """Weights of the policy's loss that correct for a sampler of another distribution; None for 1."""

    @property
    def sampled(self) -> Tensor:
        """[B, T] bool, True on every sampled token, those of invalid responses included."""
        return response_mask(self.sequences.response_lengths, width=self.mask.shape[1])

    @property
    def valid(self) -> Tensor:
        """[B] bool, whether a response is learned from."""
        return self.mask.any(-1)

    def rows(self, index: list[int]) -> Experience:
        """These responses alone, trimmed to the longest sequence and response among them."""
        chosen = torch.tensor(index, device=self.mask.device)
        batch = self.sequences.rows(chosen)
        width = int(batch.response_lengths.max())
        parts = {name: column[chosen, :width] for name, column in self._columns().items()}
        return Experience(batch, **parts, schedule=self.schedule, update=self.update)

    def dummy(self) -> Experience:
        """One response that counts for nothing: what a rank works on when it has no rows left."""
        blank = self.rows([0])
        zeros = {name: torch.zeros_like(x[:, :1]) for name, x in blank._columns().items()}
        one = torch.ones_like(blank.sequences.prompt_lengths)
        sequences = Sequences(blank.sequences.tokens[:, :2], one, one)
        return Experience(sequences, **zeros, schedule=self.schedule, update=self.update)

    def _columns(self) -> dict[str, Tensor]:
        """The [B, T] tensors that there are, by name."""
        return {name: x for name, x in vars(self).items() if isinstance(x, Tensor)}

    def measured(self, unit: str, reduce: Reduce) -> KLMeasurement:
        """KL of this rollout over all ranks, invalid responses included: the policy made them too.

        Args:
          unit: "nats_per_response" or "nats_per_token": what `.kl` is in.
          reduce: sums a tensor over ranks.
        """
        sampled = self.sampled
        local = [masked_sum(self.kl.double(), sampled), sampled.sum(), len(sampled)]
        total, tokens, responses = reduce(
            torch.stack([torch.as_tensor(x, dtype=torch.float64).cpu() for x in local])
        ).tolist()
        per = {"nats_per_response": total / responses, "nats_per_token": total / tokens}
        return KLMeasurement(kl=per[unit], responses=int(responses), **per)


@dataclass(frozen=True)
class Correction:
    """What is done about a sampler that drew from another distribution than the policy's.

    Args:
      kind: see `functional.losses.importance_weights`.
      limit: of a weight.
    """

    kind: Literal["truncate", "mask"]
    limit: float

    @classmethod
    def of(
        cls, kind: Literal["none", "truncate", "mask"], limit: float | None
    ) -> Correction | None:
        """As the recipe says it."""
        return None if kind == "none" else cls(kind, _LIMIT if limit is None else limit)

    def weights(self, rollout: Rollout, logprobs: Tensor, mask: Tensor) -> Tensor:
        """[B, T] what the policy's loss of each token is multiplied with."""
        assert rollout.logprobs is not None  # conflicts.py refuses a sampler without them
        own = padded_rows(rollout.logprobs, like=logprobs)
        return importance_weights(own, logprobs, mask, kind=self.kind, limit=self.limit)


def padded_rows(rows: Sequence[Sequence[float]], *, like: Tensor) -> Tensor:
    """[B, T] numbers of each response, 0 in the padding."""
    found = torch.zeros_like(like)
    for number, row in enumerate(rows):
        found[number, : len(row)] = torch.tensor(row, dtype=torch.float64)
    return found


@dataclass(frozen=True)
class ExperienceBuilder:
    """Turns an evaluated rollout and its scores into experience.

    Args:
      credit: makes advantages and returns.
      reduce: sums a tensor over ranks.
      penalty: whether -β KL goes into the rewards.
      correction: for a sampler of another distribution; None for none.
    """

    credit: CreditAssignment
    reduce: Reduce
    penalty: bool
    whiten_rewards: bool
    whiten_advantages: bool
    correction: Correction | None = None

    @torch.no_grad()
    def build(
        self,
        rollout: Rollout,
        scores: Scores,
        evaluation: Evaluation,
        schedule: Schedule,
        *,
        kl_coefficient: float,
    ) -> Experience:
        """Credit each token.

        Args:
          rollout: this rank's responses.
          scores: of these responses.
          evaluation: of these responses.
          schedule: the optimiser steps that will be made of them.
          kl_coefficient: β, score units per nat.

        Raises:
          RunError: a token's reward is not finite.
        """
        kl, values, rewards = evaluation.kl, evaluation.values, scores.rewards
        mask = self._mask(rollout, scores)
        if self.penalty:
            rewards = apply_kl_penalty(rewards, kl, kl_coefficient=kl_coefficient)
        rewards = rewards.to((evaluation.logprobs if values is None else values).dtype)
        rewards = rewards.masked_fill(~mask, 0)
        self._refuse_infinite(rewards, scores, kl, mask, kl_coefficient, rollout.update)
        if self.whiten_rewards:
            rewards = whiten(rewards, mask, center=False, over=self._moments(rewards, mask))
        credit = self.credit.assign(
            CreditBatch(
                rewards=rewards,
                mask=mask,
                scores=scores.mix,
                kl=kl.masked_fill(~mask, 0),
                group_ids=torch.tensor(rollout.group_ids, device=mask.device),
                stop_reasons=rollout.stop_reasons,
                values=None if values is None else values.masked_fill(~mask, 0),
                last_values=evaluation.last_values,
                score_moments=self._score_moments(scores, mask),
            )
        )
        importance = None
        if self.correction is not None:
            importance = self.correction.weights(rollout, evaluation.logprobs, mask)
        advantages = credit.advantages
        if self.whiten_advantages:
            advantages = whiten(advantages, mask, center=True, over=self._moments(advantages, mask))
        return Experience(
            sequences=rollout.sequences,
            mask=mask,
            logprobs=evaluation.logprobs,
            reference=evaluation.reference,
            kl=kl,
            rewards=rewards,
            advantages=advantages,
            schedule=schedule,
            update=rollout.update,
            values=values,
            returns=credit.returns,
            importance=importance,
        )

    def _mask(self, rollout: Rollout, scores: Scores) -> Tensor:
        """[B, T] True on the tokens of valid responses, and of no others.

        A group with fewer valid responses than the estimator compares is left out as a whole.
        """
        lengths, valid = rollout.sequences.response_lengths, scores.valid
        groups = torch.tensor(rollout.group_ids, device=valid.device)
        _, group = groups.unique(return_inverse=True)
        number = torch.zeros_like(group).index_add(0, group, valid.long())[group]
        valid = valid & (number >= self.credit.needs.samples_per_prompt)
        return response_mask(lengths, width=int(lengths.max())) & valid[:, None]

    def _score_moments(self, scores: Scores, mask: Tensor) -> ScoreMoments | None:
        """Collective where the estimator asks for them: call on all ranks."""
        if not self.credit.needs.global_moments:
            return None
        return statistics(scores.mix[mask.any(-1)], self.reduce)

    def _refuse_infinite(
        self,
        rewards: Tensor,
        scores: Scores,
        kl: Tensor,
        mask: Tensor,
        kl_coefficient: float,
        update: int,
    ) -> None:
        """Scores are finite each by itself; their mix, in the precision of values, need not be.

        Collective: call on all ranks. All raise, or none would be left for the others to wait for.

        Raises:
          RunError: some token reward is not finite on any rank.
        """
        if not int(self.reduce((~rewards.isfinite() & mask).sum().double())):
            return
        score, nats = (float(x.abs().masked_fill(~mask, 0).max()) for x in (scores.rewards, kl))
        penalty = (
            f", and a KL of up to {nats:.3g} nats times {kl_coefficient:.3g}"
            if self.penalty
            else ""
        )
        raise RunError(
            f"update {update}: the rewards of tokens are not finite in {rewards.dtype}. They are made "
            f"of scores of up to {score:.3g} (on this rank){penalty}. Lower the `weight` of the reward "
            "that is so large, or give it a transform such as {type: running_scale}"
        )

    def _moments(self, x: Tensor, mask: Tensor) -> Moments:
        return Moments(*self.reduce(torch.stack(moments(x, mask))))
