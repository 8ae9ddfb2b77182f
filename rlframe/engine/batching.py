"""Which responses go into which optimiser step and which forward pass.

The composition of an optimiser step is drawn over the global batch, so it does not depend on the
number of ranks. Micro-batches are only a way to fit a step into memory: sorted by length and filled up
to a budget of padded tokens, they change no result beyond rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

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


def spread(passes: list[Rows], count: int) -> list[Rows]:
    """The same rows in exactly `count` passes, at least as many as there are: some may be empty.

    Ranks whose forward passes differ in number wait for each other for ever. The passes with the most
    rows are halved first, so that no rank idles while another works.
    """
    passes = list(passes)
    while len(passes) < count:
        largest = max(range(len(passes)), key=lambda k: len(passes[k]), default=None)
        if largest is None or len(passes[largest]) < 2:
            passes.append([])
        else:
            rows = passes[largest]
            half = (len(rows) + 1) // 2
            passes[largest : largest + 1] = [rows[:half], rows[half:]]
    return passes


class Schedule:
    """The optimiser steps of one rollout on this rank, each divided into forward passes.

    Args:
      samples: the global number of each local row.
      lengths: tokens of each local row.
      total: responses in the global batch.
      minibatches: optimiser steps an epoch.
      budget: padded tokens in a forward pass.
      key: seeds the shuffling, equal on all ranks.
      most: the largest over all ranks of each of some numbers.
    """

    def __init__(
        self,
        samples: Sequence[int],
        lengths: Sequence[int],
        *,
        total: int,
        minibatches: int,
        budget: int,
        key: tuple[int, int],
        most: Callable[[list[int]], list[int]],
    ) -> None:
        self._row = {sample: row for row, sample in enumerate(samples)}
        self._lengths = lengths
        self._total = total
        self._minibatches = minibatches
        self._budget = budget
        self._seed, self._update = key
        self._most = most

    def steps(self, epoch: int) -> list[list[Rows]]:
        """The optimiser steps of an epoch: local rows by forward pass, as many passes on every rank.

        Every rank has to call it.
        """
        generator = torch.Generator().manual_seed(
            (self._seed * 1_000_003 + self._update) * 1_009 + epoch
        )
        order = torch.randperm(self._total, generator=generator)
        steps = [
            microbatches(
                self._lengths,
                [self._row[sample] for sample in part.tolist() if sample in self._row],
                budget=self._budget,
            )
            for part in order.tensor_split(self._minibatches)
        ]
        counts = self._most([len(passes) for passes in steps])
        return [spread(passes, count) for passes, count in zip(steps, counts, strict=True)]
