"""Reward transforms."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from pydantic import Field, PositiveFloat

from rlframe.api import PluginConfig, RewardTransform, ScoreBatch, ScoreMoments

if TYPE_CHECKING:
    from torch import Tensor

C = TypeVar("C", bound=PluginConfig)
Applied = tuple[Mapping[str, Any], "Tensor", "Tensor"]


class ClipRewardConfig(PluginConfig):
    limit: PositiveFloat = Field(description="totals are kept within ±limit, in score units")


class ClipReward(RewardTransform[ClipRewardConfig]):
    """Keeps the total of a response within ±limit; the excess is taken off at the last token."""

    example: ClassVar[dict[str, Any]] = {"limit": 5.0}

    def apply(self, state: Mapping[str, Any], scores: ScoreBatch) -> Applied:
        from rlframe.functional import transforms  # torch: only when training

        return state, *transforms.clip(scores.totals, limit=self.config.limit)


class _Running(RewardTransform[C]):
    """Keeps the statistics of all totals so far, those of this rollout included."""

    def initial(self) -> Mapping[str, Any]:
        return ScoreMoments()._asdict()

    def metrics(self, state: Mapping[str, Any]) -> Mapping[str, float]:
        seen = ScoreMoments(**state)
        return {"running_mean": seen.mean, "running_std": seen.std}


class RunningScale(_Running[PluginConfig]):
    """Divides by the standard deviation of all totals so far; a score keeps its sign.

    Engstrom et al. 2020, "Implementation Matters in Deep RL" (https://arxiv.org/abs/2005.12729).
    """

    def apply(self, state: Mapping[str, Any], scores: ScoreBatch) -> Applied:
        from rlframe.functional import transforms

        seen = ScoreMoments(**state).joined(scores.moments)
        return seen._asdict(), *transforms.scale(scores.totals, seen)


class RunningStandardize(_Running[PluginConfig]):
    """Takes off the mean of all totals so far, and divides by their standard deviation."""

    def apply(self, state: Mapping[str, Any], scores: ScoreBatch) -> Applied:
        from rlframe.functional import transforms

        seen = ScoreMoments(**state).joined(scores.moments)
        return seen._asdict(), *transforms.standardize(scores.totals, seen)


class GroupStandardize(RewardTransform[PluginConfig]):
    """Takes off the mean of the responses to the same prompt, and divides by their deviation.

    With several rewards, each then weighs the same in every group: Liu et al. 2026, "GDPO"
    (https://arxiv.org/abs/2601.05242).
    """

    def apply(self, state: Mapping[str, Any], scores: ScoreBatch) -> Applied:
        from rlframe.functional import transforms

        given = scores.totals, scores.group_ids, scores.valid
        return state, *transforms.group_standardize(*given)
