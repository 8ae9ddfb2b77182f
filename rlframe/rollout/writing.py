"""Responses while they are written: a batch, what the policy remembers of it, what stands already."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from rlframe.api.sampling import SampledPolicy
from rlframe.types import StopReason

# Rows are dropped from the batch when this share of them is done: each drop copies the cache.
_DROP_SHARE = 1 / 8


class Writing:
    """Responses being written: which rows are in the batch, their cache, and what stands already.

    Prompts are left-padded here and only here, so that all rows write at the same column. The mask is
    None while no row has padding, which lets attention take its fast path.

    Args:
      prompts: their tokens; of equal numbers if the policy takes no padding.
      draws: [B, T] a uniform number for each token of each response.
      policy: writes them.
    """

    def __init__(
        self, prompts: Sequence[Sequence[int]], draws: Tensor, policy: SampledPolicy
    ) -> None:
        device = draws.device
        width = max(map(len, prompts))
        gaps = torch.tensor([width - len(ids) for ids in prompts], device=device)
        self.draws = draws
        self.tokens = torch.tensor(
            [[0] * (width - len(p)) + list(p) for p in prompts], device=device
        )
        columns = torch.arange(width, device=device)
        self.positions = (columns - gaps[:, None]).clamp(min=0)
        self.mask = (columns >= gaps[:, None]).long() if bool(gaps.any()) else None
        self.memory = policy.memory(capacity=width + draws.shape[1])
        self._policy = policy
        self.rows = torch.arange(len(prompts), device=device)
        self.written: list[list[int]] = [[] for _ in prompts]
        self.reasons = [StopReason.LENGTH] * len(prompts)
        self._active = list(range(len(prompts)))
        self._done: set[int] = set()

    def next_logits(self) -> Tensor:
        """[b, V] of the rows that are still in the batch, `rows`."""
        return self._policy.next_logits(self.tokens, self.positions, self.mask, self.memory)

    def row(self, slot: int) -> list[int]:
        return self.written[self._active[slot]]

    def append(self, chosen: list[int]) -> None:
        for row, token in zip(self._active, chosen, strict=True):
            if row not in self._done:
                self.written[row].append(token)

    def finish(self, slot: int, reason: StopReason) -> None:
        row = self._active[slot]
        if row not in self._done:
            self._done.add(row)
            self.reasons[row] = reason

    def advance(self, chosen: Tensor) -> bool:
        """Make the chosen tokens the next input; False when every row is done."""
        if len(self._done) == len(self.written):
            return False
        self.tokens = chosen[:, None]
        self.positions = self.positions[:, -1:] + 1
        if self.mask is not None:
            self.mask = torch.cat([self.mask, self.mask.new_ones(len(self.mask), 1)], 1)
        finished = [row in self._done for row in self._active]
        if sum(finished) > _DROP_SHARE * len(finished):
            self._drop(torch.tensor([i for i, over in enumerate(finished) if not over]))
        return True

    def _drop(self, kept: Tensor) -> None:
        kept = kept.to(self.rows.device)
        if not self.memory.select(kept):
            return
        self._active = [self._active[i] for i in kept.tolist()]
        self.rows, self.tokens, self.positions = (
            x[kept] for x in (self.rows, self.tokens, self.positions)
        )
        self.mask = None if self.mask is None else self.mask[kept]
