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
    settings: FineTuningSettings,
    progress: Progress,
) -> None:
    """Train a causal language model in place.

    Args:
      model: `...ForCausalLM`.
      examples: context tokens are read but not learned from; each has tokens beyond its context.
      settings: knobs.
      progress: told about each step.
    """
    plain = [{"input_ids": e.ids, "context": e.context_tokens} for e in examples]
    fit(Trainer, model, plain, _collate, settings=settings, progress=progress)


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
