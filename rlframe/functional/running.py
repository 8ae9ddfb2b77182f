"""Statistics of numbers that keep coming: batch by batch, on any number of processes."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from rlframe.functional.rewards import at_last_token

_ROUNDING = 1e-12
"""A deviation that is a smaller share of the mean is what is left of a constant."""


class Running(NamedTuple):
    """How many numbers have been seen, their mean, and M = Σ (x - mean)²; float64, and JSON as it is.

    Beside `masked.Moments`, whose Σx² loses what differs in many numbers with a large mean.
    """

    number: int = 0
    mean: float = 0.0
    square: float = 0.0

    @property
    def std(self) -> float:
        """Population standard deviation sqrt(M / n), to divide by.

        1 for fewer than two numbers, and where all are the same but for rounding: nothing is known of
        their scale then.
        """
        found = math.sqrt(self.square / self.number) if self.number > 1 else 0.0
        return found if found > _ROUNDING * abs(self.mean) else 1.0

    def joined(self, other: Running) -> Running:
        """Of both sets together.

            n = a + b;  d = mean_b - mean_a;  mean = mean_a + d b / n;  M = M_a + M_b + d² a b / n

        Chan, Golub and LeVeque 1983, "Algorithms for Computing the Sample Variance", eq. 2.1
        (https://doi.org/10.2307/2683386).
        """
        if not self.number or not other.number:
            return self if self.number else other
        number, apart = self.number + other.number, other.mean - self.mean
        return Running(
            number,
            self.mean + apart * other.number / number,
            self.square + other.square + apart**2 * self.number * other.number / number,
        )


def statistics(x: Tensor, total: Callable[[Tensor], Tensor]) -> Running:
    """The statistics of all ranks' numbers, the same on each rank.

    In two passes, Σx and then Σ (x - mean)², so that they are those of one process to rounding.

    Args:
      x: [N] of this rank; N may differ by rank, and is above 0 on one of them.
      total: sums a tensor over ranks; called twice.
    """
    x = x.double()
    number, whole = total(torch.stack([x.new_tensor(float(len(x))), x.sum()])).tolist()
    mean = whole / number
    return Running(int(number), mean, float(total(((x - mean) ** 2).sum())))


def normalised(values: Tensor, lengths: Tensor, over: Running, *, center: bool) -> Tensor:
    """Token rewards in units of the standard deviation of whole responses' scores.

        y_t = (r_t - mean [t = length - 1]) / std        without the mean if not `center`

    so that the score of a response, Σ_t y_t, is (Σ_t r_t - mean) / std, wherever its rewards lie.

    Args:
      values: [B, T], 0 in the padding.
      lengths: [B] int64, response lengths in tokens.
      over: statistics of scores Σ_t r_t.
      center: whether the mean is taken off, at the last token.

    Returns:
      [B, T], 0 in the padding.
    """
    if center:
        mean = values.new_full((len(values),), over.mean)
        values = values - at_last_token(mean, lengths, width=values.shape[1])
    return values / over.std
