"""Sampled tokens as the engine keeps them: one rectangle, and the text that rewards read."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers import PreTrainedTokenizerBase

from rlframe.types import Sequences


def pack(
    prompts: Sequence[Sequence[int]], responses: Sequence[Sequence[int]], *, device: torch.device
) -> Sequences:
    """Prompts and responses, contiguous and right-padded with 0, which nobody reads."""
    rows = [[*p, *r] for p, r in zip(prompts, responses, strict=True)]
    width = max(map(len, rows))
    return Sequences(
        torch.tensor([row + [0] * (width - len(row)) for row in rows], device=device),
        torch.tensor([len(p) for p in prompts], device=device),
        torch.tensor([len(r) for r in responses], device=device),
    )


def response_text(
    tokenizer: PreTrainedTokenizerBase, ids: list[int], *, stop_strings: Sequence[str]
) -> str:
    """The text of a response, which ends before a stop string or a special token."""
    text = str(tokenizer.decode(ids, skip_special_tokens=True))
    ends = [at for stop in stop_strings if (at := text.find(stop)) >= 0]
    return text[: min(ends)] if ends else text
