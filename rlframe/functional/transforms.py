"""Reward transforms: each replaces the total score of a response by another one.

A transform returns (scale, shift), both [B] float64. Token rewards r of a response become

    y_t = scale r_t + shift [t is the last token]        so that Σ_t y_t = scale Σ_t r_t + shift

wherever in the response its rewards lie. Totals ought to be float64: the shift of a clip is as large as
the total itself, and in float32 a total of 1e9 + shift would lose what the clip leaves.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rlframe.batches import ScoreMoments
from rlframe.functional.groups import group_statistics


def clip(totals: Tensor, *, limit: float) -> tuple[Tensor, Tensor]:
    """Totals within ±limit.

        scale = 1        shift = clamp(total, -limit, limit) - total

    The excess is taken off at the last token. A scale of clamp(total) / total would instead shrink
    rewards inside the response by what happened elsewhere in it, and has no answer for a total of 0.

    Args:
      totals: [B] Σ_t r_t.
      limit: > 0, in score units.
    """
    totals = totals.double()
    return torch.ones_like(totals), totals.clamp(-limit, limit) - totals


def standardize(totals: Tensor, over: ScoreMoments) -> tuple[Tensor, Tensor]:
    """Totals in standard deviations from the mean of all scores seen.

        scale = 1 / std        shift = -mean / std

    Args:
      totals: [B], for their number and device alone.
      over: statistics of whole responses' scores; its `std` is 1 while nothing is known of their scale.
    """
    like = totals.double()
    return torch.full_like(like, 1 / over.std), torch.full_like(like, -over.mean / over.std)


def scale(totals: Tensor, over: ScoreMoments) -> tuple[Tensor, Tensor]:
    """Totals in units of the standard deviation of all scores seen; a score keeps its sign.

        scale = 1 / std        shift = 0

    Args:
      totals: [B], for their number and device alone.
      over: statistics of whole responses' scores; its `std` is 1 while nothing is known of their scale.
    """
    like = totals.double()
    return torch.full_like(like, 1 / over.std), torch.zeros_like(like)


def group_standardize(totals: Tensor, group_ids: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    """Totals in standard deviations from the mean of the valid responses to the same prompt.

        scale = 1 / std        shift = -mean / std        std: of n - 1, see `groups.group_statistics`

    The total becomes the advantage of `advantages.group_relative`. Nothing is known of the scale of a
    group of one, or of equal scores: its std counts as 1, and its totals become 0.

    Args:
      totals: [B] Σ_t r_t.
      group_ids: [B] int64, any numbers in any order; equal for the responses to one prompt.
      valid: [B] bool. An invalid response is never read, and gets (1, 0).
    """
    group = group_statistics(totals, group_ids, valid)
    std = group.std.masked_fill((group.std == 0) | ~valid, 1)
    return 1 / std, (-group.mean / std).masked_fill(~valid, 0)
