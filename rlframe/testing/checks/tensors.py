"""Batches of tensors, changed in ways that must not matter, and answers compared."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from rlframe.batches import CreditBatch, PolicyLossBatch, ValueLossBatch
from rlframe.testing.check import Broken

B = TypeVar("B", bound=CreditBatch | PolicyLossBatch | ValueLossBatch)


def tensors(answer: object) -> dict[str, Tensor]:
    """The tensors of a batch or an answer, by name."""
    return {name: x for name, x in vars(answer).items() if isinstance(x, Tensor)}


def changed(batch: B, fields: dict[str, Any], **more: Any) -> B:
    """The batch with other tensors."""
    return replace(batch, **(fields | more))


def copied(batch: B) -> B:
    """The batch in memory of its own, so that what is done in place does not show."""
    return changed(batch, {name: x.clone() for name, x in tensors(batch).items()})


def rows_of(batch: B, index: slice | Tensor, width: int | None = None, **more: Any) -> B:
    """Some responses alone, and of each its first tokens; `more` is what holds no tensors."""
    cut = {n: x[index, :width] if x.ndim == 2 else x[index] for n, x in tensors(batch).items()}
    return changed(batch, cut, **more)


def padded_with(batch: B, garbage: float) -> B:
    """The batch with this number wherever the mask is False."""
    return changed(
        batch,
        {
            name: x.masked_fill(~batch.mask, garbage)
            for name, x in tensors(batch).items()
            if x.ndim == 2 and name != "mask"
        },
    )


def shuffled(count: int) -> Tensor:
    """Positions in another order, always the same one."""
    return torch.randperm(count, generator=torch.Generator().manual_seed(1))


def compare(
    expected: dict[str, Tensor], found: dict[str, Tensor], when: str, *, first: int = 0
) -> None:
    """Break the promise that an answer stays the same, but for rounding.

    Args:
      expected: by name, [B, ...].
      found: the same.
      when: what was done in between, for the message.
      first: the number of the first row in the batch that it was taken from.
    """
    for name, before in expected.items():
        after = found[name]
        same = torch.isclose(before, after, rtol=1e-6, atol=1e-9, equal_nan=True)
        if not bool(same.all()):
            row = int((~same).any(-1).nonzero()[0])
            raise Broken(
                f"{name} of row {first + row} went from {shown(before[row])} to "
                f"{shown(after[row])} {when}"
            )


def shown(row: Tensor) -> str:
    """Numbers in few digits."""
    return "[" + ", ".join(f"{x:.4g}" for x in row.tolist()) + "]"
