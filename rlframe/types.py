"""What flows through the engine: frozen dataclasses, one layout, one mask polarity.

Shapes: B responses, T response tokens, L tokens of prompt and response together. A sequence is
right-padded with prompt and response contiguous, so its positions are 0..n-1 and a causal model needs
no attention mask. Masks come from lengths, never from token ids, and are True on real tokens.

torch is imported for annotations alone: reading a recipe must not cost its import.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import torch
    from torch import Tensor

Row = Mapping[str, Any]
"""One row of a data set: column name to value."""

ENDS_WITH_TURN = "rlframe_ends_with_turn"
"""Key in the config.json of a reward model that was trained on texts which end with the end of the
answer: with the template's own token for it, or else with EOS, and nothing behind it.
"""


class StopReason(StrEnum):
    """Why a response ended. Rewards ask for this, never for a token's id."""

    EOS = "eos"
    STOP_STRING = "stop_string"
    LENGTH = "length"


@dataclass(frozen=True)
class Prompt:
    """What the policy is asked to continue."""

    text: str
    ids: tuple[int, ...]
    columns: Row = field(default_factory=dict)
    """The row of the data set that the prompt came from."""
    messages: tuple[Mapping[str, str], ...] | None = None
    """The chat that `text` was rendered from, if it was one."""


@dataclass(frozen=True)
class Sequences:
    """Prompts and responses as one right-padded rectangle of tokens.

    `tokens` is [B, L] int64; the two length vectors are [B] int64 on the same device, in tokens.
    Whatever lies beyond prompt_lengths + response_lengths is never read.
    """

    tokens: Tensor
    prompt_lengths: Tensor
    response_lengths: Tensor

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def lengths(self) -> Tensor:
        """[B] tokens of prompt and response together."""
        return self.prompt_lengths + self.response_lengths

    def rows(self, index: Tensor) -> Sequences:
        """These rows alone, trimmed to the longest of them."""
        lengths = self.lengths[index]
        width = int(lengths.max()) if len(lengths) else 0
        return Sequences(
            self.tokens[index, :width], self.prompt_lengths[index], self.response_lengths[index]
        )


@dataclass(frozen=True)
class Rollout:
    """Responses of one policy to a batch of prompts, before anybody judged them.

    The sequences have one tuple entry a response in each of the other fields. `samples` are the
    responses' numbers in the global batch; responses to the same prompt share a `group_ids` entry.
    """

    sequences: Sequences
    prompts: tuple[Prompt, ...]
    texts: tuple[str, ...]
    stop_reasons: tuple[StopReason, ...]
    group_ids: tuple[int, ...]
    samples: tuple[int, ...]
    update: int
    logprobs: tuple[tuple[float, ...], ...] | None = None
    """With top-k, top-p or min-p: log-probability of each sampled token, in nats, by the truncated
    distribution that it was drawn from. None without them, since that is the policy's.
    """

    def __len__(self) -> int:
        return len(self.texts)

    def response_ids(self) -> list[list[int]]:
        """The response tokens of each row, a final EOS included if it was sampled."""
        cut = self.sequences
        bounds = zip(cut.prompt_lengths.tolist(), cut.lengths.tolist(), strict=True)
        tokens = cut.tokens.tolist()
        return [row[start:end] for row, (start, end) in zip(tokens, bounds, strict=True)]


@dataclass(frozen=True)
class RewardBatch:
    """What a reward provider judges: this rank's whole share of a rollout, groups complete.

    Every sequence has one entry a response. `response_texts` end before a stop string or a special
    token; `response_ids` are exactly the sampled tokens.
    """

    prompts: Sequence[Prompt]
    response_texts: Sequence[str]
    response_ids: Sequence[Sequence[int]]
    stop_reasons: Sequence[StopReason]
    group_ids: Sequence[int]
    """Equal for responses to the same prompt. Groups are never split over ranks."""
    update: int
    """Number of the PPO update, from 0."""
    generator: torch.Generator
    """Seeded by run, update and rank: the only source of randomness that a reward may use."""
    sample_reference: Callable[[], RewardBatch] | None = None
    """Draws one response of the reference model to each prompt. None outside a PPO run."""

    def __len__(self) -> int:
        return len(self.response_texts)

    @property
    def prompt_texts(self) -> list[str]:
        """The prompts as text, templates applied."""
        return [prompt.text for prompt in self.prompts]

    @property
    def response_lengths(self) -> list[int]:
        """Sampled tokens of each response, EOS included."""
        return [len(ids) for ids in self.response_ids]

    def column(self, name: str) -> list[Any]:
        """A column of the data set, one entry a response; KeyError names the missing column."""
        return [prompt.columns[name] for prompt in self.prompts]

    def rows(self, index: Sequence[int]) -> RewardBatch:
        """These responses alone, in this order, and those of the reference model beside them."""
        draw = self.sample_reference
        return replace(
            self,
            sample_reference=None if draw is None else lambda: draw().rows(index),
            prompts=[self.prompts[i] for i in index],
            response_texts=[self.response_texts[i] for i in index],
            response_ids=[self.response_ids[i] for i in index],
            stop_reasons=[self.stop_reasons[i] for i in index],
            group_ids=[self.group_ids[i] for i in index],
        )

    def with_responses(
        self, texts: Sequence[str], ids: Sequence[Sequence[int]], stop_reasons: Sequence[StopReason]
    ) -> RewardBatch:
        """The same prompts with other responses: what a comparing provider hands to the inner one."""
        return replace(self, response_texts=texts, response_ids=ids, stop_reasons=stop_reasons)


@dataclass(frozen=True)
class KLState:
    """All that a KL controller remembers. Written to checkpoints as JSON."""

    coefficient: float
    """beta: score units per nat."""
    memory: Mapping[str, float] = field(default_factory=dict)
    """Anything else, by name: integrals, averages, counts."""


@dataclass(frozen=True)
class KLMeasurement:
    """KL(policy || reference) of one rollout, summed over all ranks before it was divided."""

    kl: float
    """In the unit that the controller declares."""
    nats_per_response: float
    nats_per_token: float
    responses: int
    """Responses of the rollout on all ranks together."""


@dataclass(frozen=True)
class TokenBatch:
    """Right-padded tokens for an auxiliary loss.

    `tokens` is [B, L] int64. `mask` is [B, L-1] bool: True where the *prediction* of tokens[:, t+1]
    counts, so that it multiplies `policy.logprobs(tokens)` as it is.
    """

    tokens: Tensor
    mask: Tensor


@dataclass(frozen=True)
class TokenExample:
    """One example for a next-token loss: tokens, and which of them are learned from."""

    ids: tuple[int, ...]
    context_tokens: int
    """Tokens at the start that are read but not learned from. The first token never counts."""
    learned: tuple[tuple[int, int], ...] | None = None
    """Half-open ranges of `ids` that are learned from, in order, where these are not simply all
    tokens beyond the context: the assistant's turns of a conversation."""

    @property
    def spans(self) -> tuple[tuple[int, int], ...]:
        """Half-open ranges of `ids` that are learned from."""
        whole = ((self.context_tokens, len(self.ids)),)
        return whole if self.learned is None else self.learned

    def counts(self) -> list[bool]:
        """For each token whether it is learned from; the first is predicted by nothing."""
        found = [False] * len(self.ids)
        for start, end in self.spans:
            found[max(start, 1) : end] = [True] * max(0, end - max(start, 1))
        return found

    def cut(self, tokens: int) -> TokenExample:
        """The example without what lies beyond so many tokens."""
        if self.learned is None:
            return replace(self, ids=self.ids[:tokens])
        spans = [(start, min(end, tokens)) for start, end in self.learned if start < tokens]
        return replace(self, ids=self.ids[:tokens], learned=tuple(spans))

    def last_span(self) -> TokenExample:
        """The example with its last range learned from, and all before it as context."""
        start, end = self.spans[-1]
        return TokenExample(self.ids[:end], start)


@dataclass(frozen=True)
class LossTerm:
    """A sum and what it is a sum over; the engine divides by the count of the whole optimiser step."""

    total: Tensor
    """Scalar with gradient: the loss summed over what `count` counts, in nats for a likelihood."""
    count: Tensor
    """Scalar without gradient: tokens, usually."""


class PolicyView(Protocol):
    """What an auxiliary loss may ask of the policy in training."""

    def logprobs(self, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        """Log π(tokens[:, t+1] | tokens[:, :t+1]): [B, L] -> [B, L-1] nats, at temperature 1.

        Where `mask`, [B, L-1], is False the result is 0 and no logits are computed.
        """
        ...
