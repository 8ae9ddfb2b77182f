"""Supervised fine-tuning: next-token loss on text, or on responses given their prompts."""

from __future__ import annotations

import math
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
    max_tokens: int,
    settings: FineTuningSettings,
    progress: Progress,
) -> None:
    """Train a causal language model in place.

    Args:
      model: `...ForCausalLM`.
      examples: context tokens are read but not learned from.
      max_tokens: longer examples are cut at the end.
      settings: knobs.
      progress: told about each step.
    """
    cut = [
        {"input_ids": e.ids[:max_tokens], "context": e.context_tokens}
        for e in examples
        if e.context_tokens < max_tokens
    ]
    fit(Trainer, model, cut, _collate, settings=settings, progress=progress)


def _collate(examples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """Right-padded and causal: no attention mask is needed, and labels say what counts."""
    batch = token_batch(
        [TokenExample(tuple(e["input_ids"]), e["context"]) for e in examples],
        device=torch.device("cpu"),
    )
    counts = torch.nn.functional.pad(batch.mask, (1, 0))  # the first token is predicted by nothing
    return {
        "input_ids": batch.tokens,
        "labels": batch.tokens.masked_fill(~counts, _IGNORED),
    }


@torch.no_grad()
def perplexity(
    policy: Policy, examples: Sequence[TokenExample], *, max_tokens: int, budget: int
) -> float:
    """Exp of the mean negative log-likelihood per token that counts, EOS included.

    Args:
      policy: asked at temperature 1.
      examples: at least one token of them must count.
      max_tokens: longer examples are cut, as in training.
      budget: padded tokens in one forward pass.
    """
    device = next(policy.parameters()).device
    cut = [TokenExample(e.ids[:max_tokens], e.context_tokens) for e in examples]
    total, count = 0.0, 0
    for rows in microbatches([len(e.ids) for e in cut], list(range(len(cut))), budget=budget):
        batch = token_batch([cut[row] for row in rows], device=device)
        total -= float(policy.logprobs(batch.tokens, batch.mask).double().sum())
        count += int(batch.mask.sum())
    return math.exp(total / count)
