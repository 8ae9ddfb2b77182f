"""Statistics of numbers that keep coming: batch by batch, on any number of processes."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from rlframe.batches import ScoreMoments


def statistics(x: Tensor, total: Callable[[Tensor], Tensor]) -> ScoreMoments:
    """The statistics of all ranks' numbers, the same on each rank.

    In two passes, Σx and then Σ (x - mean)², so that they are those of one process to rounding.

    Args:
      x: [N] of this rank; N may differ by rank.
      total: sums a tensor over ranks; called twice.
    """
    x = x.double()
    number, whole = total(torch.stack([x.new_tensor(float(len(x))), x.sum()])).tolist()
    mean = whole / max(number, 1)
    return ScoreMoments(int(number), mean, float(total(((x - mean) ** 2).sum())))
