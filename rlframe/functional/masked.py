"""Reducers that take a mask: the only reductions over [B, T] tensors in rlframe.

A masked value is never read, so garbage in the padding, NaN and infinity included, changes nothing.
An empty mask sums to 0 and averages to 0, so that an empty micro-batch contributes nothing.

`Moments` carries what a statistic over several ranks needs: the engine adds the three numbers over
all ranks and hands the sum back, so that whitening is the same for any number of processes.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


def masked_sum(x: Tensor, mask: Tensor) -> Tensor:
    """Σ x over the real tokens.

    Args:
      x: [...] any shape.
      mask: like `x`, bool, True on real tokens.

    Returns:
      A scalar; 0 for an empty mask.
    """
    return x.masked_fill(~mask, 0).sum()


def row_sums(x: Tensor, mask: Tensor) -> Tensor:
    """Σ_t x over the real tokens of each row: [B, T] -> [B]. 0 for an empty row."""
    return x.masked_fill(~mask, 0).sum(-1)


def masked_mean(x: Tensor, mask: Tensor) -> Tensor:
    """Mean of x over the real tokens: Σ x m / Σ m. A scalar; 0 for an empty mask."""
    return masked_sum(x, mask) / mask.sum().clamp(min=1)


class Moments(NamedTuple):
    """Number, sum and sum of squares of a set of numbers, each a float64 scalar.

    Two sets are joined by adding their moments. Float64 keeps Σx² - (Σx)²/n accurate
    for values of any practical mean.
    """

    number: Tensor
    total: Tensor
    square: Tensor

    @property
    def mean(self) -> Tensor:
        """Σx / n; 0 for an empty set."""
        return self.total / self.number.clamp(min=1)

    @property
    def var(self) -> Tensor:
        """Population variance Σx²/n - (Σx/n)²; 0 for an empty set, never negative."""
        square = self.square / self.number.clamp(min=1)
        var = square - self.mean**2
        return torch.where(var > 1e-13 * square, var, 0)  # less is the rounding of a constant


def moments(x: Tensor, mask: Tensor) -> Moments:
    """The moments of x over the real tokens.

    Args:
      x: [...] any shape.
      mask: like `x`, bool.
    """
    kept = x.masked_fill(~mask, 0).double()
    return Moments(mask.sum().double(), kept.sum(), (kept * kept).sum())


def masked_var(x: Tensor, mask: Tensor) -> Tensor:
    """Population variance of x over the real tokens: Σ (x - mean)² m / Σ m, a scalar.

    Computed in two passes, so it is accurate in the dtype of `x`. 0 for an empty mask.
    """
    kept = x.masked_fill(~mask, 0)  # an infinity in the padding would reach the gradient
    return masked_mean((kept - masked_mean(kept, mask)) ** 2, mask)


def whiten(
    x: Tensor, mask: Tensor, *, center: bool, over: Moments | None = None, eps: float = 1e-8
) -> Tensor:
    """Scale x to unit variance over the real tokens and, with `center`, to mean 0.

        y = (x - μ) / sqrt(σ² + ε) + (0 if center else μ)

    σ² is the population variance. `center` says what happens to the mean: the argument that other
    code calls `shift_mean` has been read both ways.

    Huang et al. 2024, "The N+ Implementation Details of RLHF with PPO", detail on whitening
    (https://arxiv.org/abs/2403.17031).

    Args:
      x: [B, T].
      mask: [B, T] bool.
      center: True removes the mean (advantages); False keeps it (rewards, whose sign matters).
      over: the moments to whiten with, summed over all ranks; those of `x` if left out.
      eps: added to the variance; a constant input whitens to 0 (or to its mean).

    Returns:
      [B, T], exactly 0 where `mask` is False.
    """
    over = moments(x, mask) if over is None else over
    # In float64: a mean of 1e5 taken off in float32 leaves a thousandth of a standard deviation.
    scaled = (x.masked_fill(~mask, 0).double() - over.mean) * torch.rsqrt(over.var + eps)
    return (scaled if center else scaled + over.mean).to(x.dtype).masked_fill(~mask, 0)


def explained_variance(target: Moments, residual: Moments) -> Tensor:
    """How much of the returns' variance the critic explains.

        1 - Var(G - V) / Var(G)        1: perfect; 0: no better than a constant; below 0: worse

    Args:
      target: moments of the returns G.
      residual: moments of G - V.

    Returns:
      A float64 scalar; NaN when the returns do not vary, because the question has no answer then.
    """
    return torch.where(target.var > 0, 1 - residual.var / target.var, torch.nan)
