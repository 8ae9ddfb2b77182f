"""What the parts of the algorithm work on, and what they return; see `types` for shapes and masks.

torch is imported for annotations alone: reading a recipe must not cost its import.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from rlframe.types import StopReason

if TYPE_CHECKING:
    from torch import Tensor

_ROUNDING = 1e-12
"""A deviation that is a smaller share of the mean is what is left of a constant."""


class ScoreMoments(NamedTuple):
    """The number n of scores, their mean, and M = Σ (x - mean)²; float64, and JSON as it is.

    A sum of squares would lose what differs between scores with a large mean.
    """

    number: int = 0
    """How many scores there are."""
    mean: float = 0.0
    """In score units."""
    squared_deviations: float = 0.0
    """M, in score units squared."""

    @property
    def std(self) -> float:
        """Population standard deviation sqrt(M / n), to divide by.

        1 for fewer than two scores, and where all are the same but for rounding: nothing is known of
        their scale then.
        """
        found = math.sqrt(self.squared_deviations / self.number) if self.number > 1 else 0.0
        return found if found > _ROUNDING * abs(self.mean) else 1.0

    def joined(self, other: ScoreMoments) -> ScoreMoments:
        """Of both sets together.

            n = a + b;  d = mean_b - mean_a;  mean = mean_a + d b / n;  M = M_a + M_b + d² a b / n

        Chan, Golub and LeVeque 1983, "Algorithms for Computing the Sample Variance", eq. 2.1
        (https://doi.org/10.2307/2683386).
        """
        if not self.number or not other.number:
            return self if self.number else other
        number, apart = self.number + other.number, other.mean - self.mean
        return ScoreMoments(
            number,
            self.mean + apart * other.number / number,
            self.squared_deviations
            + other.squared_deviations
            + apart**2 * self.number * other.number / number,
        )


@dataclass(frozen=True)
class ScoreBatch:
    """What a reward transform works on: the total scores of one reward, this rank's shard.

    Complete groups, and all tensors on one device.
    """

    totals: Tensor
    """[B] float64, the sum of each response's token rewards at this place of the chain."""
    valid: Tensor
    """[B] bool, False for a response that this reward does not score, which counts in no statistic."""
    group_ids: Tensor
    """[B] int64, equal for responses to the same prompt. Groups are never split over ranks."""
    moments: ScoreMoments
    """Of all valid totals of this rollout, over all ranks."""
    update: int
    """The number of the PPO update, from 0."""
    updates: int
    """How many there will be."""

    def __len__(self) -> int:
        """B, the number of responses."""
        return len(self.totals)


@dataclass(frozen=True)
class CreditBatch:
    """What an advantage estimator works on: this rank's whole shard of a rollout, with complete groups.

    All tensors are on one device. [B, T] tensors are 0 where `mask` is False.
    """

    rewards: Tensor
    """[B, T] the reward of each token, KL penalty included where KL acts in the reward."""
    mask: Tensor
    """[B, T] bool, True on the tokens of valid responses; an invalid response has none."""
    scores: Tensor
    """[B] what the rewards gave each response as a whole, without KL."""
    kl: Tensor
    """[B, T] the KL estimate, in nats per token."""
    group_ids: Tensor
    """[B] int64, equal for responses to the same prompt. Groups are never split over ranks."""
    stop_reasons: tuple[StopReason, ...]
    """Why each response ended."""
    values: Tensor | None = None
    """[B, T] the critic's estimate before each token; None without `EstimatorNeeds.critic`."""
    last_values: Tensor | None = None
    """[B] the critic's estimate after the last token of a response that was cut at the token limit, 0
    for one that ended; None without `EstimatorNeeds.last_values`."""
    score_moments: ScoreMoments | None = None
    """Over all ranks; None without `EstimatorNeeds.global_moments`."""

    def __len__(self) -> int:
        """B, the number of responses, invalid ones included."""
        return len(self.mask)

    @property
    def totals(self) -> Tensor:
        """[B] the sum of each response's token rewards, KL penalty included."""
        return self.rewards.masked_fill(~self.mask, 0).sum(-1)

    @property
    def valid(self) -> Tensor:
        """[B] bool, False for an invalid response, which counts in no statistic."""
        return self.mask.any(-1)


@dataclass(frozen=True)
class Credit:
    """What an advantage estimator returns, before whitening."""

    advantages: Tensor
    """[B, T], 0 where the mask is False."""
    returns: Tensor | None = None
    """[B, T] the critic's targets, 0 where the mask is False; None without a critic."""


@dataclass(frozen=True)
class PolicyLossBatch:
    """What a policy loss works on: the responses of one micro-batch, each as a whole.

    All tensors are [B, T] and on one device. Where `mask` is False, nothing must be read.
    """

    logprobs: Tensor
    """log π of the policy in training, in nats, with gradient."""
    old_logprobs: Tensor
    """log π when the tokens were sampled, in nats."""
    advantages: Tensor
    """Of each token, whitened if the recipe says so."""
    entropy: Tensor
    """Of the policy in training at each token, in nats, with gradient."""
    mask: Tensor
    """bool, True on the tokens of valid responses; a row without any is there to keep ranks in step."""


@dataclass(frozen=True)
class ValueLossBatch:
    """What a value loss works on: the tokens of one micro-batch, as in `PolicyLossBatch`."""

    values: Tensor
    """[B, T] V of the critic in training, in score units, with gradient."""
    old_values: Tensor
    """[B, T] V when the tokens were sampled."""
    returns: Tensor
    """[B, T] the critic's targets."""
    mask: Tensor
    """[B, T] bool, True on the tokens of valid responses."""


@dataclass(frozen=True)
class TokenLoss:
    """What a policy loss or a value loss returns, not reduced: only the engine knows the count."""

    loss: Tensor
    """[B, T] the loss of each token, with gradient."""
    clipped: Tensor | None = None
    """[B, T] bool, where a bound acted; None for a loss without one, which then has no such metric."""
