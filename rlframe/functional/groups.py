"""Statistics of groups: the responses to one prompt, compared with each other and with nobody else."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

_ROUNDING = 8
"""Scores differ by rounding alone if their deviation is at most so many eps of the largest of them."""


class GroupStatistics(NamedTuple):
    """What a response knows about its group's valid members, itself included; [B] float64 each."""

    number: Tensor
    """Valid members."""
    mean: Tensor
    """Of their scores; 0 for a group without one."""
    deviation: Tensor
    """Score - mean; exactly 0 for an invalid response, and where all scores are equal."""
    std: Tensor
    """Sample standard deviation sqrt(Σ (score - mean)² / (n - 1)).

    0 for fewer than two valid members, and where the scores differ by no more than rounding.
    """


def group_statistics(scores: Tensor, group_ids: Tensor, valid: Tensor) -> GroupStatistics:
    """The statistics of each response's group.

    In two passes and relative to the group's largest score m, so that a large mean hides no deviation:

        mean = m + Σ (s - m) / n        std² = Σ (s - mean)² / (n - 1)

    Equal scores then deviate by exactly 0, whereas 0.1 differs from (0.1 + 0.1 + 0.1) / 3.

    Args:
      scores: [B].
      group_ids: [B] int64, any numbers in any order; equal for the members of a group.
      valid: [B] bool. The score of an invalid response is never read.
    """
    groups = torch.unique(group_ids, return_inverse=True)[1]
    kept = scores.masked_fill(~valid, 0).double()
    number = _sums(valid.double(), groups)
    top = _largest(kept.masked_fill(~valid, -torch.inf), groups).masked_fill(number == 0, 0)
    below = (kept - top).masked_fill(~valid, 0)
    offset = _sums(below, groups) / number.clamp(min=1)
    deviation = (below - offset).masked_fill(~valid, 0)
    std = (_sums(deviation**2, groups) / (number - 1).clamp(min=1)).sqrt()
    rounding = _ROUNDING * torch.finfo(scores.dtype).eps * _largest(kept.abs(), groups)
    return GroupStatistics(number, top + offset, deviation, std.masked_fill(std <= rounding, 0))


def _sums(x: Tensor, groups: Tensor) -> Tensor:
    """Σ x over the group of each row; `groups` are numbers below B."""
    return torch.zeros_like(x).index_add(0, groups, x)[groups]


def _largest(x: Tensor, groups: Tensor) -> Tensor:
    """The largest x in the group of each row."""
    return torch.zeros_like(x).scatter_reduce(0, groups, x, "amax", include_self=False)[groups]
