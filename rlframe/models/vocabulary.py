"""Which ids have a token: heads and embeddings are often padded to a multiple beyond them."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

_IMPOSSIBLE = -1e4
"""exp of it is 0 in every dtype, and it is finite in every dtype, so that 0 * log 0 is 0."""


@dataclass(frozen=True)
class Vocabulary:
    """The ids that have a token.

    Args:
      size: the largest of them, and 1.
      missing: those below `size` that have none.
    """

    size: int
    missing: tuple[int, ...] = ()
    _indices: dict[torch.device, Tensor] = field(default_factory=dict, compare=False, repr=False)

    def ids(self, rows: int) -> list[int]:
        """Those below `rows`, in order."""
        gone = set(self.missing)
        return [number for number in range(min(self.size, rows)) if number not in gone]

    def restrict(self, logits: Tensor) -> Tensor:
        """[..., V] -> [..., size]: logits of the ids that have a token; impossible ones elsewhere."""
        cut = logits[..., : self.size]
        if not self.missing:
            return cut
        return cut.index_fill(-1, self._missing(logits.device), _IMPOSSIBLE)

    def present(self, columns: int, *, device: torch.device) -> Tensor:
        """[columns] bool: which of the ids 0..columns-1 have a token."""
        found = torch.arange(columns, device=device) < self.size
        return found.index_fill(0, self._missing(device), False) if self.missing else found

    def _missing(self, device: torch.device) -> Tensor:
        if device not in self._indices:
            self._indices[device] = torch.tensor(self.missing, device=device)
        return self._indices[device]


def vocabulary_of(tokenizer: PreTrainedTokenizerBase) -> Vocabulary:
    """The ids of a tokenizer's tokens, added ones included."""
    ids = set(tokenizer.get_vocab().values())
    size = max(ids) + 1
    return Vocabulary(size, tuple(sorted(set(range(size)) - ids)))
