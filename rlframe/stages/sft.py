"""Supervised fine-tuning: next-token loss on text, or on responses given their prompts."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from typing import Any

import torch
from transformers import Trainer

from rlframe.engine.batching import microbatches
from rlframe.engine.streams import token_batch
from rlframe.models.policy import Policy
from rlframe.stages.supervised import FineTuningSettings, Progress, fit
from rlframe.types import TokenExample

_IGNORED = -100  # the label that transformers' losses skip


def fine_tune(
    model: Any,
    examples: Sequence[TokenExample],
    *,
    pack_to: int | None,
    settings: FineTuningSettings,
    progress: Progress,
) -> None:
    """Train a causal language model in place.

    Args:
      model: `...ForCausalLM`.
      examples: context tokens are read but not learned from; each has tokens beyond its context.
      pack_to: tokens of the rows that examples are packed into; None for a row an example.
      settings: knobs; the batch size counts rows.
      progress: told about each step.
    """
    rows = [_labelled(e) for e in examples]
    if pack_to is not None:
        rows = packed(rows, tokens=pack_to, seed=settings.seed)
    fit(Trainer, model, rows, _collate, settings=settings, progress=progress)


def _labelled(example: TokenExample) -> dict[str, list[int]]:
    """Tokens, and which of them count; the first of a text is predicted by nothing."""
    context = max(example.context_tokens, 1)
    return {
        "input_ids": list(example.ids),
        "labels": [_IGNORED] * context + list(example.ids[context:]),
    }


def packed(
    rows: Sequence[dict[str, list[int]]], *, tokens: int, seed: int
) -> list[dict[str, list[int]]]:
    """Rows of exactly `tokens` tokens, the examples end to end in random order; the last is shorter.

    An example that does not fit is continued in the next row. What it learns from stays what it was:
    the labels travel with the tokens, so a first token still counts for nothing.

    Args:
      rows: each with `input_ids` and `labels`, equally long.
      tokens: length of a packed row.
      seed: of the order.
    """
    order = random.Random(seed).sample(range(len(rows)), len(rows))
    joined = {key: [x for row in order for x in rows[row][key]] for key in ("input_ids", "labels")}
    return [
        {key: values[start : start + tokens] for key, values in joined.items()}
        for start in range(0, len(joined["labels"]), tokens)
    ]


def _collate(rows: list[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
    """Right-padded and causal: no attention mask is needed, and labels say what counts."""
    width = max(len(row["labels"]) for row in rows)
    filling = {"input_ids": 0, "labels": _IGNORED}
    return {
        key: torch.tensor([row[key] + [fill] * (width - len(row[key])) for row in rows])
        for key, fill in filling.items()
    }


@torch.no_grad()
def perplexity(policy: Policy, examples: Sequence[TokenExample], *, budget: int) -> float:
    """Perplexity: exp of the mean negative log-likelihood per token that counts, EOS included.

    Args:
      policy: asked at temperature 1.
      examples: at least one, each with tokens beyond its context.
      budget: padded tokens in one forward pass.
    """
    device = next(policy.parameters()).device
    total, count = 0.0, 0
    lengths = [len(e.ids) for e in examples]
    for rows in microbatches(lengths, list(range(len(examples))), budget=budget):
        batch = token_batch([examples[row] for row in rows], device=device)
        total -= float(policy.logprobs(batch.tokens, batch.mask).double().sum())
        count += int(batch.mask.sum())
    return math.exp(total / count)
