"""Reward transforms by hand: totals after them, and the state between one rollout and the next."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
import torch

from rlframe.api import RewardTransform, ScoreBatch, ScoreMoments
from rlframe.builtin.reward_transforms import (
    ClipReward,
    GroupStandardize,
    RunningScale,
    RunningStandardize,
)
from tests.playing import part


def scores(*totals: float, groups: list[int] | None = None, valid: Any = None) -> ScoreBatch:
    """Of one process; all valid, and a group each, unless it is said otherwise."""
    x = torch.tensor(totals, dtype=torch.float64)
    counts = torch.ones(len(x), dtype=torch.bool) if valid is None else torch.tensor(valid)
    mean = float(x[counts].mean())
    moments = ScoreMoments(int(counts.sum()), mean, float(((x[counts] - mean) ** 2).sum()))
    ids = torch.tensor(range(len(x)) if groups is None else groups)
    return ScoreBatch(x, counts, ids, moments, update=0, updates=1)


def applied(
    transform: type[RewardTransform[Any]], *rollouts: ScoreBatch, **config: Any
) -> list[list[float]]:
    """The totals of each rollout after a transform, whose state goes through JSON between them."""
    component = part("a.transforms.0", transform, **config).component
    state, found = component.initial(), []
    for batch in rollouts:
        state, scale, shift = component.apply(json.loads(json.dumps(state)), batch)
        found.append((batch.totals * scale + shift).tolist())
    return found


def test_clip_keeps_totals_within_its_limit() -> None:
    assert applied(ClipReward, scores(-7.0, -1.0, 0.0, 3.5, 9.0), limit=3.0) == [[-3, -1, 0, 3, 3]]


def test_running_scale_divides_by_the_deviation_of_all_so_far() -> None:
    """1 3 5: std sqrt(8/3). With 7 7 7 besides: mean 5, std sqrt((16 + 4 + 0 + 3 * 4) / 6)."""
    first, second = applied(RunningScale, scores(1, 3, 5), scores(7, 7, 7))
    one, two = math.sqrt(8 / 3), math.sqrt(32 / 6)
    assert first == pytest.approx([1 / one, 3 / one, 5 / one], rel=1e-12)
    assert second == pytest.approx([7 / two] * 3, rel=1e-12)


def test_running_standardize_takes_off_the_mean_of_all_so_far() -> None:
    first, second = applied(RunningStandardize, scores(1, 3, 5), scores(7, 7, 7))
    one, two = math.sqrt(8 / 3), math.sqrt(32 / 6)
    assert first == pytest.approx([-2 / one, 0, 2 / one], rel=1e-12, abs=1e-12)
    assert second == pytest.approx([2 / two] * 3, rel=1e-12)


@pytest.mark.parametrize("transform", [RunningScale, RunningStandardize])
def test_scores_that_are_all_the_same_are_divided_by_1(transform: Any) -> None:
    shift = 4.0 if transform is RunningStandardize else 0.0
    assert applied(transform, scores(4, 4, 4), scores(4)) == [[4 - shift] * 3, [4 - shift]]


def test_a_running_transform_tells_by_what_it_transforms() -> None:
    component = part("a.transforms.0", RunningScale).component
    state, *_ = component.apply(component.initial(), scores(1, 3, 5))
    expected = {"running_mean": 3.0, "running_std": math.sqrt(8 / 3)}
    assert component.metrics(state) == pytest.approx(expected, rel=1e-12)
    assert part("a.transforms.0", ClipReward, limit=1.0).component.metrics({}) == {}


def test_group_standardize_compares_the_responses_to_one_prompt() -> None:
    """1 and 5: mean 3, std of n - 1 sqrt(8). 2 2 2 are equal, and 9 is alone: both become 0."""
    batch = scores(1, 2, 5, 2, 9, 2, groups=[7, 3, 7, 3, 1, 3])
    (found,) = applied(GroupStandardize, batch)
    expected = [-2 / math.sqrt(8), 0, 2 / math.sqrt(8), 0, 0, 0]
    assert found == pytest.approx(expected, rel=1e-12, abs=1e-12)


def test_an_invalid_response_is_in_no_group() -> None:
    batch = scores(1, 1e6, 5, groups=[0, 0, 0], valid=[True, False, True])
    (found,) = applied(GroupStandardize, batch)
    assert found[0] == pytest.approx(-2 / math.sqrt(8), rel=1e-12)
    assert found[2] == pytest.approx(2 / math.sqrt(8), rel=1e-12)


@pytest.mark.parametrize("limit", [0.0, -1.0])
def test_a_limit_is_positive(limit: float) -> None:
    with pytest.raises(ValueError, match="greater than 0"):
        ClipReward.Config(limit=limit)
