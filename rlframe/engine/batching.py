"""Which responses go into which optimiser step and which forward pass.

The composition of an optimiser step is drawn over the global batch, so it does not depend on the
number of ranks. Micro-batches are only a way to fit a step into memory: sorted by length and filled up
to a budget of padded tokens, they change no result beyond rounding.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

Rows = list[int]


def microbatches(lengths: Sequence[int], rows: Rows, *, budget: int) -> list[Rows]:
    """Divide rows into forward passes of at most `budget` padded tokens, longest first.

    Args:
      lengths: tokens of each sequence, indexed by row.
      rows: the rows to divide.
      budget: padded tokens a pass; a single sequence longer than it gets a pass of its own.
    """
    passes: list[Rows] = []
    for row in sorted(rows, key=lambda r: (-lengths[r], r)):
        # The first row of a pass is its longest, so it says how wide the pass is.
        if passes and (len(passes[-1]) + 1) * lengths[passes[-1][0]] <= budget:
            passes[-1].append(row)
        else:
            passes.append([row])
    return passes


class Schedule:
    """The optimiser steps of one rollout on this rank.

    Args:
      samples: the global number of each local row.
      total: responses in the global batch.
      minibatches: optimiser steps an epoch.
      key: seeds the shuffling, equal on all ranks.
    """

    def __init__(
        self, samples: Sequence[int], *, total: int, minibatches: int, key: tuple[int, int]
    ) -> None:
        self._row = {sample: row for row, sample in enumerate(samples)}
        self._total = total
        self._minibatches = minibatches
        self._seed, self._update = key

    def steps(self, epoch: int) -> list[Rows]:
        """The local rows of each optimiser step of an epoch, in order."""
        generator = torch.Generator().manual_seed(
            (self._seed * 1_000_003 + self._update) * 1_009 + epoch
        )
        order = torch.randperm(self._total, generator=generator)
        return [
            [self._row[sample] for sample in part.tolist() if sample in self._row]
            for part in order.tensor_split(self._minibatches)
        ]

    def passes(self, lengths: Sequence[int], epoch: int, *, budget: int) -> list[Rows]:
        """All micro-batches of an epoch, one optimiser step after the other."""
        return [
            rows
            for step in self.steps(epoch)
            for rows in microbatches(lengths, step, budget=budget)
        ]
