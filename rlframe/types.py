"""What flows through the engine: frozen dataclasses, one layout, one mask polarity.

Shapes: B responses, T response tokens, L tokens of prompt and response together. A sequence is
right-padded with prompt and response contiguous, so its positions are 0..n-1 and a causal model needs
no attention mask. Masks come from lengths, never from token ids, and are True on real tokens.

torch is imported for annotations alone: reading a recipe must not cost its import.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence, Sized
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Literal, Protocol

if TYPE_CHECKING:
    import torch
    from torch import Tensor

Row = Mapping[str, Any]
"""One row of a data set: a mapping from column names to values."""

ENDS_WITH_TURN = "rlframe_ends_with_turn"
"""Key in the config.json of a reward model that was trained on texts which end with the end of the
answer: with the template's own token for it, or else with EOS, and nothing behind it.
"""


OnNone = Literal["skip", "invalid"]
"""What it means that a reward returns None for a response: the reward adds nothing to its mix, or the
whole response is left out of learning."""


class StopReason(StrEnum):
    """Why a response ended. Rewards ask for this, never for a token's id."""

    EOS = "eos"
    """The policy sampled a token that ends its answer."""
    STOP_STRING = "stop_string"
    """The text reached one of `rollout.stop_strings`."""
    LENGTH = "length"
    """The response reached `rollout.max_new_tokens` and was truncated."""


@dataclass(frozen=True)
class Prompt:
    """What the policy is asked to continue."""

    text: str
    """The prompt as the policy reads it, with templates applied."""
    ids: tuple[int, ...]
    """The tokens of `text`."""
    columns: Row = field(default_factory=dict)
    """The row of the data set that the prompt came from."""
    messages: tuple[Mapping[str, str], ...] | None = None
    """The chat from which `text` was rendered; None if the prompt was plain text."""


@dataclass(frozen=True)
class Sequences:
    """Prompts and responses as one right-padded rectangle of tokens. All tensors are on one device."""

    tokens: Tensor
    """[B, L] int64. What lies beyond `lengths` is padding and never read."""
    prompt_lengths: Tensor
    """[B] int64, the tokens of each prompt."""
    response_lengths: Tensor
    """[B] int64, the sampled tokens of each response."""

    def __len__(self) -> int:
        """B, the number of sequences."""
        return len(self.tokens)

    @property
    def lengths(self) -> Tensor:
        """[B] int64, the tokens of prompt and response together."""
        return self.prompt_lengths + self.response_lengths

    def rows(self, index: Tensor) -> Sequences:
        """The sequences at these positions alone, trimmed to the longest of them."""
        lengths = self.lengths[index]
        width = int(lengths.max()) if len(lengths) else 0
        return Sequences(
            self.tokens[index, :width], self.prompt_lengths[index], self.response_lengths[index]
        )


@dataclass(frozen=True)
class Rollout:
    """Responses of one policy to a batch of prompts, before they are scored.

    Every tuple has one entry per response.
    """

    sequences: Sequences
    """The tokens of prompts and responses."""
    prompts: tuple[Prompt, ...]
    """The prompt of each response."""
    texts: tuple[str, ...]
    """The responses as text, which ends before a stop string or a special token."""
    stop_reasons: tuple[StopReason, ...]
    """Why each response ended."""
    group_ids: tuple[int, ...]
    """Equal for responses to the same prompt."""
    samples: tuple[int, ...]
    """The number of each response in the batch of all ranks, from 0."""
    update: int
    """The number of the PPO update, from 0."""
    logprobs: tuple[tuple[float, ...], ...] | None = None
    """The log-probability of each sampled token, in nats, under the distribution that it was drawn
    from, as the sampler computed it. None where that is the policy's own but for rounding, and nothing
    asks for it: see `rollout.sampler`."""
    retried: int | None = None
    """How many responses the sampler had to continue or sample again; None for the one in the box."""

    def __len__(self) -> int:
        """The number of responses."""
        return len(self.texts)

    def response_ids(self) -> list[list[int]]:
        """The sampled tokens of each response, a final EOS included if it was sampled."""
        cut = self.sequences
        bounds = zip(cut.prompt_lengths.tolist(), cut.lengths.tolist(), strict=True)
        tokens = cut.tokens.tolist()
        return [row[start:end] for row, (start, end) in zip(tokens, bounds, strict=True)]


RewardLog = Callable[[str, "float | Sequence[float | str | None]"], None]
"""(name, values): see `RewardBatch.log`."""


def _unheard(name: str, values: float | Sequence[float | str | None]) -> None:
    """Outside of a run nobody listens."""


@dataclass(frozen=True)
class RewardBatch:
    """What a reward provider scores: this rank's whole shard of a rollout, with complete groups.

    Every sequence has one entry per response, in the same order.
    """

    prompts: Sequence[Prompt]
    """The prompt of each response."""
    response_texts: Sequence[str]
    """The responses as text, which ends before a stop string or a special token."""
    response_ids: Sequence[Sequence[int]]
    """Exactly the sampled tokens of each response, a final EOS included if there is one."""
    stop_reasons: Sequence[StopReason]
    """Why each response ended."""
    group_ids: Sequence[int]
    """Equal for responses to the same prompt. Groups are never split over ranks."""
    update: int
    """The number of the PPO update, from 0."""
    generator: torch.Generator
    """Seeded by run, update and rank: the only source of randomness that a reward may use."""
    sample_reference: Callable[[], RewardBatch] | None = None
    """Draws one response of the reference model to each prompt. None outside a PPO run."""
    logprobs: Sequence[Sequence[float]] | None = None
    """The log-probability of each sampled token, in nats, as the sampler returned it. None unless a
    reward of the recipe asks for it with `Needs.logprobs`, and for responses of the reference."""
    updates: int = 1
    """How many PPO updates there will be: a curriculum is a function of `update / updates`."""
    log: RewardLog = field(default=_unheard)
    """Logs figures of the reward's own: `batch.log("format", [1.0, 0.0, ...])` with one entry per
    response, a number, a text or None, or `batch.log("calls", 3.0)` with one number. Numbers are
    averaged over responses and ranks into the metric `reward/NAME/format`; the entries of held-out
    responses, texts included, are in `samples/`. It does nothing outside of a run, and for other
    responses than those of the rollout (`with_responses`)."""

    def __len__(self) -> int:
        """The number of responses."""
        return len(self.response_texts)

    @property
    def prompt_texts(self) -> list[str]:
        """The prompt of each response as text, with templates applied."""
        return [prompt.text for prompt in self.prompts]

    @property
    def response_lengths(self) -> list[int]:
        """The number of sampled tokens of each response, a final EOS included."""
        return [len(ids) for ids in self.response_ids]

    def column(self, name: str) -> list[Any]:
        """A column of the prompts' data set, one entry per response.

        Raises:
          KeyError: a prompt's row has no such column. `Needs.columns` or a config field of type
            `ColumnName` makes that an error of the recipe instead.
        """
        return [prompt.columns[name] for prompt in self.prompts]

    def rows(self, index: Sequence[int]) -> RewardBatch:
        """The responses at these positions alone; `sample_reference` and `log` follow them."""
        draw = self.sample_reference

        def log(name: str, values: float | Sequence[float | str | None]) -> None:
            if isinstance(values, Sized) and len(values) == len(index):
                entries: list[float | str | None] = [None] * len(self)
                for place, value in zip(index, values, strict=True):
                    entries[place] = value
                values = entries
            self.log(name, values)

        return replace(
            self,
            log=log,
            sample_reference=None if draw is None else lambda: draw().rows(index),
            prompts=tuple(self.prompts[i] for i in index),
            response_texts=tuple(self.response_texts[i] for i in index),
            response_ids=[self.response_ids[i] for i in index],
            stop_reasons=tuple(self.stop_reasons[i] for i in index),
            group_ids=tuple(self.group_ids[i] for i in index),
            logprobs=None if self.logprobs is None else [self.logprobs[i] for i in index],
        )

    def with_responses(
        self, texts: Sequence[str], ids: Sequence[Sequence[int]], stop_reasons: Sequence[StopReason]
    ) -> RewardBatch:
        """The same prompts with other responses, for a provider that compares two of them."""
        return replace(
            self,
            response_texts=texts,
            response_ids=ids,
            stop_reasons=stop_reasons,
            logprobs=None,
            log=_unheard,
        )


@dataclass(frozen=True)
class KLState:
    """All that a KL controller remembers. Checkpoints keep it as JSON."""

    coefficient: float
    """The KL coefficient β, in units of score per nat; not negative."""
    memory: Mapping[str, float] = field(default_factory=dict)
    """Anything else that the controller remembers, by name: integrals, averages, counts."""


@dataclass(frozen=True)
class KLMeasurement:
    """KL(policy || reference) of one rollout, summed over all ranks before it is divided."""

    kl: float
    """The KL in the unit that the controller declares: one of the two below."""
    nats_per_response: float
    """The mean over responses of the KL summed over each response's tokens."""
    nats_per_token: float
    """The mean over the sampled tokens of all responses."""
    responses: int
    """The number of responses of the rollout on all ranks together."""


@dataclass(frozen=True)
class TokenBatch:
    """Right-padded tokens for an auxiliary loss."""

    tokens: Tensor
    """[B, L] int64."""
    mask: Tensor
    """[B, L-1] bool, True where the *prediction* of `tokens[:, t+1]` counts: it has the shape of
    `policy.logprobs(tokens)`, which it multiplies."""


@dataclass(frozen=True)
class TokenExample:
    """One example for a next-token loss: tokens, and which of them are learned from."""

    ids: tuple[int, ...]
    """The tokens, in the policy's vocabulary."""
    context_tokens: int
    """The number of tokens at the start that are read but not learned from. The first token is never
    learned from, since nothing predicts it."""
    learned: tuple[tuple[int, int], ...] | None = None
    """Half-open ranges of `ids` that are learned from, in order, such as the assistant's turns of a
    conversation; None for all tokens after the context."""

    @property
    def spans(self) -> tuple[tuple[int, int], ...]:
        """The half-open ranges of `ids` that are learned from, whether `learned` is given or not."""
        whole = ((self.context_tokens, len(self.ids)),)
        return whole if self.learned is None else self.learned

    def counts(self) -> list[bool]:
        """For each token, whether it is learned from."""
        found = [False] * len(self.ids)
        for start, end in self.spans:
            found[max(start, 1) : end] = [True] * max(0, end - max(start, 1))
        return found

    def cut(self, tokens: int) -> TokenExample:
        """The example truncated to its first `tokens` tokens."""
        if self.learned is None:
            return replace(self, ids=self.ids[:tokens])
        spans = [(start, min(end, tokens)) for start, end in self.learned if start < tokens]
        return replace(self, ids=self.ids[:tokens], learned=tuple(spans))

    def last_span(self) -> TokenExample:
        """The example up to the end of its last range, learned from in that range alone."""
        start, end = self.spans[-1]
        return TokenExample(self.ids[:end], start)


@dataclass(frozen=True)
class LossTerm:
    """A sum and what it is a sum over; the engine divides by the count of the whole optimiser step."""

    total: Tensor
    """A scalar with a gradient: the loss summed over what `count` counts, in nats for a likelihood."""
    count: Tensor
    """A scalar without a gradient: the number of terms of the sum, usually tokens."""


class PolicyView(Protocol):
    """What an auxiliary loss may ask of the policy in training."""

    def logprobs(self, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        """The log-probability of each token after the first, given those before it, at temperature 1.

            log π(tokens[:, t+1] | tokens[:, :t+1])

        Args:
          tokens: [B, L] int64, right-padded.
          mask: [B, L-1] bool; where it is False the result is 0 and no logits are computed.

        Returns:
          [B, L-1] in nats, with a gradient.
        """
        ...

    def per_token(
        self,
        function: Callable[..., Tensor],
        tokens: Tensor,
        mask: Tensor | None = None,
        *inputs: Tensor,
    ) -> Tensor:
        """One number per token, computed from the whole distribution that predicts it.

        The function gets at most `ppo.logits_chunk` predictions at a time, and the same ones again in
        the backward pass: log-probabilities of the vocabulary at all tokens never exist at once.
        Minus the entropy, and the cross-entropy with the `ids` [B, L-1, K] that another model finds
        most likely, whose log-probabilities are `teacher` [B, L-1, K]:

            policy.per_token(lambda logp, _: (logp.exp() * logp).sum(-1), tokens, mask)

            def cross_entropy(logp, targets, ids, teacher):
                return -(teacher.exp() * logp.gather(-1, ids)).sum(-1)

            policy.per_token(cross_entropy, tokens, mask, ids, teacher)

        Gradients flow through `logprobs` into the policy. They also reach `inputs` and tensors that the
        function closes over, but the engine optimises the policy alone. An id without a token, as
        in padded heads, has probability 0 and a log-probability of about -10,000, finite so that
        p · log p is 0. A mean over the vocabulary must leave it out: see `has_token`.

        Args:
          function: maps (logprobs, targets, *rows) of n predictions to a tensor [n]. `logprobs` [n, V]
            are those of all ids at temperature 1 in nats, in float32 or wider; `targets` [n] int64
            the tokens that were predicted; `rows` the rows of `inputs` that belong to the
            predictions. Each number comes from its row alone, and a second call gives the same: no
            random numbers, no counters. n may be 0.
          tokens: [B, L] int64, right-padded.
          mask: [B, L-1] bool; where it is False the result is 0 and no logits are computed.
          inputs: tensors [B, L-1, ...], such as another model's log-probabilities or hidden states.

        Returns:
          [B, L-1] in the unit of the function, with a gradient.

        Raises:
          ValueError: the function returned no tensor [n], or an input does not begin with [B, L-1].
        """
        ...

    def has_token(self, logprobs: Tensor) -> Tensor:
        """Which ids have a token: those that a mean over the vocabulary is over.

        Args:
          logprobs: [n, V], as a function given to `per_token` gets them.

        Returns:
          [V] bool on their device.
        """
        ...
