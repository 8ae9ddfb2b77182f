"""Supervised fine-tuning: next-token loss on text, or on responses given their prompts."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from rlframe.data.encode import RowEncoder
from rlframe.data.examples import Prepared, demonstrations
from rlframe.data.rows import Mapped
from rlframe.distributed.runtime import Runtime
from rlframe.engine.batching import microbatches
from rlframe.engine.streams import token_batch
from rlframe.models.policy import Policy
from rlframe.models.profile import Profile
from rlframe.models.vocabulary import Vocabulary
from rlframe.recipe.schema import SFTStage
from rlframe.runs.saving import Saver
from rlframe.stages.stage import EVALUATION_TOKENS, SupervisedRun
from rlframe.stages.supervised import FineTuningSettings, Progress, fit
from rlframe.types import TokenExample

_IGNORED = -100  # the label that transformers' losses skip
_CHUNK = 4096  # positions whose logits exist at a time
_OPEN = 16  # packed rows that wait for an example that fits: few enough to leave the order random


class SFTRun(SupervisedRun[SFTStage, TokenExample]):
    """The policy learns from texts, answers or conversations."""

    def prepare(self) -> Prepared[TokenExample]:
        """Rows as tokens, of which those that are learned from are marked."""
        context, encoder = self.context, RowEncoder(self.context.tokenizer, self.section.learn)
        train, heldout = (
            Mapped(part, encoder.example, within=context.within) for part in context.rows
        )
        found = demonstrations(
            (train, heldout), context.tokenizer, max_tokens=self.section.max_tokens
        )
        return context.noted(found, encoder)

    def texts(self, example: TokenExample) -> Sequence[TokenExample]:
        """One."""
        return (example,)

    def train(self, model: Any, progress: Progress, saver: Saver) -> None:
        """Next-token loss."""
        fine_tune(
            model,
            self.examples.train,
            pack_to=self.section.max_tokens if self.section.pack else None,
            profile=self.context.profile(model),
            vocabulary=self.context.vocabulary,
            settings=self.settings,
            progress=progress,
            saver=saver,
        )

    def measure(self, model: Any) -> tuple[dict[str, float], str]:
        """Perplexity."""
        found = perplexity(
            Policy(
                model,
                temperature=1.0,
                chunk=1024,
                profile=self.context.profile(model),
                vocabulary=self.context.vocabulary,
            ),
            self.examples.heldout,
            budget=EVALUATION_TOKENS,
            runtime=self.context.runtime,
        )
        return {"perplexity": found}, f"held-out perplexity {found:.2f}"


def fine_tune(
    model: Any,
    examples: Sequence[TokenExample],
    *,
    pack_to: int | None,
    profile: Profile | None = None,
    vocabulary: Vocabulary | None = None,
    settings: FineTuningSettings,
    progress: Progress,
    saver: Saver | None = None,
) -> None:
    """Train a causal language model in place.

    Args:
      model: `...ForCausalLM`.
      examples: context tokens are read but not learned from; each has tokens beyond its context.
      pack_to: tokens of the rows that examples are packed into; None for a row an example.
      profile: how the model is run.
      vocabulary: the ids that have a token.
      settings: hyperparameters; the batch size counts rows.
      progress: notified of each step.
      saver: of the stage's checkpoints; None for none.
    """
    rows = [_labelled(e) for e in examples]
    if pack_to is not None:
        rows = packed(rows, tokens=pack_to, seed=settings.seed)
    blank = {"input_ids": [0, 0], "labels": [_IGNORED, _IGNORED]}
    blank |= {"position_ids": [0, 1]} if pack_to is not None else {}
    fit(
        _NextToken(
            Policy(model, temperature=1.0, chunk=_CHUNK, profile=profile, vocabulary=vocabulary)
        ),
        model,
        rows,
        _collate,
        blank=blank,
        settings=settings,
        progress=progress,
        saver=saver,
    )


class _NextToken(nn.Module):
    """Mean negative log-likelihood of the labels, by the chunked head: no [B, L, V] here either."""

    accepts_loss_kwargs = True  # Trainer hands over what to divide by

    def __init__(self, policy: Policy) -> None:
        super().__init__()
        self.model = policy.model
        self._policy = [policy]  # not a second child

    def forward(
        self,
        input_ids: Tensor,
        labels: Tensor,
        *,
        num_items_in_batch: Tensor,
        position_ids: Tensor | None = None,
    ) -> dict[str, Tensor]:
        (policy,) = self._policy
        wanted = labels[:, 1:] != _IGNORED
        positions = None if position_ids is None else position_ids[:, :-1]
        found = policy.logprobs(input_ids, wanted, positions=positions)
        return {"loss": -found.sum() / num_items_in_batch}


def _labelled(example: TokenExample) -> dict[str, list[int]]:
    """Tokens, and as labels those of them that count."""
    counts = zip(example.ids, example.counts(), strict=True)
    return {
        "input_ids": list(example.ids),
        "labels": [token if learned else _IGNORED for token, learned in counts],
    }


def packed(
    rows: Sequence[dict[str, list[int]]], *, tokens: int, seed: int
) -> list[dict[str, list[int]]]:
    """Rows of at most `tokens` tokens, each of whole examples in random order, little of it empty.

    Positions start again at 0 with each example, which transformers takes as the border that
    attention does not cross: an example is learned from as if it stood alone.

    Args:
      rows: each with `input_ids` and `labels`, equally long, at most `tokens`.
      tokens: length of a packed row.
      seed: of the order.
    """
    done: list[dict[str, list[int]]] = []
    open_: list[dict[str, list[int]]] = []
    for number in random.Random(seed).sample(range(len(rows)), len(rows)):
        size = len(rows[number]["labels"])
        into = next((o for o in open_ if len(o["labels"]) + size <= tokens), None)
        if into is None:
            into = {"input_ids": [], "labels": [], "position_ids": []}
            open_.append(into)
        for key in ("input_ids", "labels"):
            into[key] += rows[number][key]
        into["position_ids"] += range(size)
        if len(open_) > _OPEN:
            done.append(open_.pop(0))
    return done + open_


def _collate(rows: list[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
    """Right-padded and causal: no attention mask is needed, and labels say what counts."""
    width = max(len(row["labels"]) for row in rows)
    filling = {"input_ids": 0, "labels": _IGNORED, "position_ids": 0}
    return {
        key: torch.tensor([row[key] + [filling[key]] * (width - len(row[key])) for row in rows])
        for key in rows[0]
    }


@torch.no_grad()
def perplexity(
    policy: Policy, examples: Sequence[TokenExample], *, budget: int, runtime: Runtime
) -> float:
    """Perplexity: exp of the mean negative log-likelihood per token that counts, EOS included.

    Args:
      policy: asked at temperature 1.
      examples: at least one, each with tokens beyond its context.
      budget: padded tokens in one forward pass.
      runtime: each rank looks at its share.
    """
    sums = torch.zeros(2, dtype=torch.float64)
    lengths = [len(e.ids) for e in examples]
    share = list(range(len(examples)))[runtime.rank :: runtime.world_size]
    for rows in microbatches(lengths, share, budget=budget):
        batch = token_batch([examples[row] for row in rows], device=runtime.device)
        sums[0] -= float(policy.logprobs(batch.tokens, batch.mask).double().sum())
        sums[1] += int(batch.mask.sum())
    total, count = runtime.sum(sums).tolist()
    return math.exp(total / count)
