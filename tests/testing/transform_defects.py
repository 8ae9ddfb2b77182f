"""Reward transforms that each break one promise, and those that they were made of."""

from __future__ import annotations

import random
from typing import Any

import torch

from rlframe.api import PluginConfig, RewardTransform
from tests.testing.expected import (
    ALL_ALIKE,
    GLOBAL,
    MEANING,
    PARTITION,
    REFUSED,
    RESUMED,
    Planted,
    Refused,
)


class Tanh(RewardTransform[PluginConfig]):
    """Keeps totals within ±1; it has no state."""

    def apply(self, state: Any, scores: Any) -> Any:
        total = scores.totals
        return state, torch.ones_like(total), total.tanh() - total


class Centred(RewardTransform[PluginConfig]):
    """Takes off the mean of the means of all rollouts."""

    def initial(self) -> Any:
        return {"seen": 0, "mean": 0.0}

    def apply(self, state: Any, scores: Any) -> Any:
        seen, mean = state["seen"], state["mean"]
        mean = (seen * mean + self.mean(scores)) / (seen + 1)
        new = {"seen": seen + 1, "mean": mean}
        return new, torch.ones_like(scores.totals), torch.full_like(scores.totals, -mean)

    def mean(self, scores: Any) -> float:
        return float(scores.moments.mean)

    def metrics(self, state: Any) -> Any:
        return {"centre": state["mean"]}


class NewTotals(Tanh):
    def apply(self, state: Any, scores: Any) -> Any:
        return state, scores.totals.tanh()


class OneScale(Tanh):
    def apply(self, state: Any, scores: Any) -> Any:
        return state, 0.5, 0 * scores.totals


class ScaleInSingle(Tanh):
    def apply(self, state: Any, scores: Any) -> Any:
        return state, torch.ones(len(scores)), 0 * scores.totals


class ATensorAsState(Centred):
    def initial(self) -> Any:
        return {"seen": 0, "mean": torch.zeros(())}


class BySpread(Tanh):
    def apply(self, state: Any, scores: Any) -> Any:
        seen = scores.moments
        std = (seen.squared_deviations / max(seen.number, 1)) ** 0.5
        total = scores.totals
        return state, torch.full_like(total, std).reciprocal(), 0 * total


class LogOfTotals(Tanh):
    def apply(self, state: Any, scores: Any) -> Any:
        total = scores.totals
        return state, torch.ones_like(total), total.log() - total


class TurnsScores(Tanh):
    def apply(self, state: Any, scores: Any) -> Any:
        return state, -torch.ones_like(scores.totals), 0 * scores.totals


class MeanOfItsRank(Centred):
    def mean(self, scores: Any) -> float:
        return float(scores.totals.nan_to_num().mean())


class OfItsRankAndNotInItsState(Tanh):
    def apply(self, state: Any, scores: Any) -> Any:
        total = scores.totals
        return state, torch.ones_like(total), (0 * total) - total.nan_to_num().mean()


class LastOfTheBatch(Tanh):
    def apply(self, state: Any, scores: Any) -> Any:
        total = scores.totals
        return state, torch.ones_like(total), torch.arange(len(total)).double()


class CountsInvalidOnes(Tanh):
    def apply(self, state: Any, scores: Any) -> Any:
        total, groups = scores.totals, scores.group_ids
        same = (groups[:, None] == groups).double()
        return state, torch.ones_like(total), -(same @ total) / same.sum(-1)


class ChangesItsState(Centred):
    def apply(self, state: Any, scores: Any) -> Any:
        answer = super().apply(state, scores)
        state["seen"] += 1
        return answer


class ChangesTotals(Tanh):
    def apply(self, state: Any, scores: Any) -> Any:
        answer = super().apply(state, scores)
        scores.totals.clamp_(-0.1, 0.1)
        return answer


class RemembersOnItself(Tanh):
    def __init__(self, config: Any, context: Any) -> None:
        super().__init__(config, context)
        self.calls = 0

    def apply(self, state: Any, scores: Any) -> Any:
        self.calls += 1
        total = scores.totals
        return state, torch.ones_like(total), torch.full_like(total, 1 / self.calls)


class KeepsAStateBesideItsState(Tanh):
    def state_dict(self) -> Any:
        return {"seen": {1, 2}}


class TellsTensors(Tanh):
    def metrics(self, state: Any) -> Any:
        return {"scale": torch.ones(2)}


class TellsNaN(Tanh):
    def metrics(self, state: Any) -> Any:
        return {"scale": float("nan")}


class TossesScores(Tanh):
    def apply(self, state: Any, scores: Any) -> Any:
        random.seed(0)
        return super().apply(state, scores)


RIGHT = (Tanh, Centred)

PLANTED = [
    Planted(NewTotals, "state_scale_and_shift", REFUSED),
    Planted(OneScale, "state_scale_and_shift", REFUSED),
    Planted(ScaleInSingle, "state_scale_and_shift", REFUSED),
    Planted(ATensorAsState, "state_scale_and_shift", REFUSED),
    Planted(BySpread, "finite", Refused(ALL_ALIKE)),
    Planted(LogOfTotals, "finite", REFUSED),
    Planted(TurnsScores, "order_kept", MEANING),
    Planted(MeanOfItsRank, "ranks_agree", PARTITION),
    Planted(OfItsRankAndNotInItsState, "ranks_agree", PARTITION),
    Planted(LastOfTheBatch, "ranks_agree", PARTITION),
    Planted(CountsInvalidOnes, "invalid_responses_count_for_nothing", PARTITION),
    Planted(ChangesItsState, "pure", REFUSED),
    Planted(ChangesTotals, "pure", REFUSED),
    Planted(RemembersOnItself, "pure", RESUMED),
    Planted(KeepsAStateBesideItsState, "state_can_be_kept", REFUSED),
    Planted(TellsTensors, "metrics_are_numbers", REFUSED),
    Planted(TellsNaN, "metrics_are_numbers", REFUSED),
    Planted(TossesScores, "global_rng_untouched", GLOBAL),
]
