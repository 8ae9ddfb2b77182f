"""Where updates get their data: positions are functions of a counter, so there is nothing to lose."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Sequence
from typing import Generic, TypeVar

import torch

from rlframe.rollout.seeds import stream
from rlframe.types import TokenBatch, TokenExample

T = TypeVar("T")


class Shuffled(Generic[T]):
    """An endless sequence of items: one permutation after the other, each drawn on its own.

    Args:
      items: at least one.
      key: seeds the permutations, with the number of the pass.
    """

    def __init__(self, items: Sequence[T], *, key: tuple[int | str, ...]) -> None:
        if not items:
            raise ValueError("an endless stream needs at least one item")
        self._items = items
        self._key = key
        self._order: tuple[int, list[int]] = (-1, [])

    def take(self, start: int, count: int) -> list[T]:
        """Items number start ... start + count - 1; the same ones whenever they are asked for."""
        return [self._items[self._at(position)] for position in range(start, start + count)]

    def _at(self, position: int) -> int:
        turn, offset = divmod(position, len(self._items))
        if self._order[0] != turn:
            order = torch.randperm(len(self._items), generator=stream(*self._key, turn))
            self._order = (turn, order.tolist())
        return self._order[1][offset]


def digest(examples: Sequence[TokenExample]) -> str:
    """The sha256 of all that is learned from some examples, by which ranks are compared."""
    found = hashlib.sha256()
    for example in examples:
        spans = [place for span in example.spans for place in span]
        found.update(array("q", [len(example.ids), *example.ids, len(spans), *spans]))
    return found.hexdigest()


def token_batch(examples: Sequence[TokenExample], *, device: torch.device) -> TokenBatch:
    """Right-pad examples; the mask is True where the prediction of a token counts."""
    width = max(len(e.ids) for e in examples)
    gaps = [width - len(e.ids) for e in examples]
    tokens = [[*e.ids, *[0] * gap] for e, gap in zip(examples, gaps, strict=True)]
    # Prediction t is of token t + 1.
    counts = [[*e.counts()[1:], *[False] * gap] for e, gap in zip(examples, gaps, strict=True)]
    mask = torch.tensor(counts, dtype=torch.bool, device=device)
    return TokenBatch(torch.tensor(tokens, device=device), mask)


def no_tokens(device: torch.device) -> TokenBatch:
    """A batch that counts for nothing: what a rank works on that has none when others have one."""
    tokens = torch.zeros(1, 2, dtype=torch.int64, device=device)
    return TokenBatch(tokens, torch.zeros(1, 1, dtype=torch.bool, device=device))


def in_parts(
    examples: Sequence[TokenExample], parts: int, *, of: int | None = None
) -> list[list[TokenExample]]:
    """Divide examples, longest first, into at most `parts` groups of neighbours.

    Args:
      examples: this rank's.
      parts: at least 1.
      of: examples of the rank that has most; all ranks' groups have the same size then.
    """
    ordered = sorted(examples, key=lambda e: -len(e.ids))
    size = max(1, -(-(len(ordered) if of is None else of) // parts))
    return [ordered[i : i + size] for i in range(0, len(ordered), size)]


def padded_tokens(examples: Sequence[TokenExample]) -> int:
    """Tokens of the rectangle that holds the examples."""
    return max((len(e.ids) for e in examples), default=0) * len(examples)
