"""Base classes of the algorithm's own parts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from rlframe.api.answers import missing
from rlframe.api.component import C, Component, Needs
from rlframe.batches import (
    Credit,
    CreditBatch,
    PolicyLossBatch,
    ScoreBatch,
    TokenLoss,
    ValueLossBatch,
)

if TYPE_CHECKING:
    from torch import Tensor


class RewardTransform(Component[C]):
    """Replaces the total score of each response by another one. Pure: state goes in and comes out.

    The engine keeps the state in checkpoints, and ends the run if ranks arrive at different states.
    Held-out scores are not transformed, and change no state.
    """

    def initial(self) -> Mapping[str, Any]:
        """The state before the first rollout: plain data that JSON can hold, {} if there is none."""
        return {}

    def apply(
        self, state: Mapping[str, Any], scores: ScoreBatch
    ) -> tuple[Mapping[str, Any], Tensor, Tensor]:
        """The next state, and what happens to the token rewards r of each response:

            y_t = scale r_t + shift [t is the last token]        so that Σ_t y_t = scale Σ_t r_t + shift

        Called once per rollout on every rank, also on one without a valid response. It must change
        neither argument and call no collective: `scores.moments` are of all ranks.

        Returns:
          (state, scale, shift); scale and shift are [B] float64, on the device of the totals, and
          finite for valid responses.
        """
        raise missing(self, "apply")

    def metrics(self, state: Mapping[str, Any]) -> Mapping[str, float]:
        """What to log of a state, as `reward/NAME/KEY`; nothing if left out."""
        return {}


@dataclass(frozen=True)
class EstimatorNeeds(Needs):
    """What an advantage estimator needs, known from its config alone."""

    critic: bool = True
    """Whether the estimator reads a critic's values and returns its targets. Without a critic there is
    none in memory, in checkpoints or among the metrics."""
    last_values: bool = False
    """Whether it reads the critic's estimate after the last token of responses that were cut at the
    token limit, which costs an extra forward pass over those."""
    global_moments: bool = False
    """Whether it reads the statistics of all scores, so that a response's advantages depend on those of
    other groups."""


class AdvantageEstimator(Component[C]):
    """Turns rewards into the advantages of tokens, and into the critic's targets if there is one."""

    whiten: ClassVar[bool] = True
    """Whether the engine whitens the advantages over all tokens of all ranks, unless the recipe says
    otherwise in `algorithm.whiten_advantages`. False for an estimator whose advantages compare the
    responses of a group, which whitening would give another scale."""

    @classmethod
    def needs(cls, config: C) -> EstimatorNeeds:
        """What the run must have for this estimator; the default is a critic."""
        return EstimatorNeeds()

    def estimate(self, batch: CreditBatch) -> Credit:
        """Advantages and returns of the tokens, before whitening. The batch must not be changed.

        Called once per rollout on every rank, without a gradient, with that rank's shard. It must not
        call a collective. Responses of one group must not change the advantages of another, unless
        `needs` declares `global_moments`.

        Returns:
          Advantages, and returns where there is a critic, both [B, T] with the dtype and on the device
          of the rewards. Both are 0 where the mask is False, and finite elsewhere if what was given is.
        """
        raise missing(self, "estimate")


class PolicyLoss(Component[C]):
    """The loss that moves the policy along its advantages."""

    def loss(self, batch: PolicyLossBatch) -> TokenLoss:
        """The loss of each token, unreduced, and where a bound acted.

        Called for every micro-batch of every optimiser step, inside the forward pass of the model in
        training and under autograd. It must not call `backward` or a collective, and must not read
        what the mask leaves out, not in its gradient either: 0 times NaN is NaN. Rows are whole
        responses; groups may be split.

        The engine weighs the tokens and divides by the count of the whole step over all ranks
        (`algorithm.reduction`), adds KL where it is a loss, and measures ratios and approximate KL.
        """
        raise missing(self, "loss")


class ValueLoss(Component[C]):
    """The loss of the critic, which the engine divides by the tokens of the step."""

    reserved: ClassVar[frozenset[str]] = frozenset({"type", "coefficient"})

    def loss(self, batch: ValueLossBatch) -> TokenLoss:
        """The loss of each token, unreduced, and where a bound acted. Called as a policy loss is."""
        raise missing(self, "loss")
