"""Sampling responses: one forward pass a token over the rows that are still being written.

A token is the inverse CDF at a uniform number that belongs to (run seed, update, sample), so the same
responses come out whatever the batch. Finished rows leave the batch. Nothing of size [B, T, V] exists:
the head runs on the last position alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedTokenizerBase

from rlframe.errors import RunError
from rlframe.functional.sampling import inverse_cdf, keep, log_probability
from rlframe.rollout.seeds import uniforms
from rlframe.rollout.writing import Decoder, Writing
from rlframe.types import Prompt, Rollout, Sequences, StopReason


@dataclass(frozen=True)
class SamplingParams:
    """How responses are sampled; the temperature belongs to the policy, which needs it to learn."""

    max_new_tokens: int
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    stop_strings: tuple[str, ...] = ()
    batch: int | None = None
    """Most responses sampled at a time; all if None."""

    @property
    def truncated(self) -> bool:
        """Whether filters take tokens away, so that not the policy's distribution is sampled."""
        return bool(self.top_k or self.min_p) or (self.top_p or 1) < 1


@dataclass(frozen=True)
class Request:
    """A prompt to respond to, and which response of the global batch that will be."""

    prompt: Prompt
    sample: int
    group: int


class Sampler:
    """Writes responses with one policy.

    Args:
      policy: asked for the next token's logits; see `models.policy.Policy`.
      tokenizer: for stop strings and the text of the responses.
      eos_ids: every token that ends a response.
      params: lengths, filters, stop strings.
      seed: of the run.
    """

    def __init__(
        self,
        policy: Decoder,
        tokenizer: PreTrainedTokenizerBase,
        *,
        eos_ids: frozenset[int],
        params: SamplingParams,
        seed: int,
    ) -> None:
        self._policy = policy
        self._tokenizer = tokenizer
        self._eos = sorted(eos_ids)
        self._params = params
        self._seed = seed
        self.batch = params.batch
        """Most responses sampled at a time; all if None. It changes no response."""

    @torch.no_grad()
    def sample(
        self, requests: Sequence[Request], *, update: int, purpose: str, device: torch.device
    ) -> Rollout:
        """One response to each request.

        Args:
          requests: at least one.
          update: number of the PPO update; part of the seed.
          purpose: part of the seed, see `seeds.uniforms`.
          device: where the tokens live.
        """
        ids: list[list[int]] = [[] for _ in requests]
        reasons = [StopReason.LENGTH] * len(requests)
        logprobs: list[tuple[float, ...]] = [() for _ in requests]
        for rows in self._batches(requests):
            part = [requests[row] for row in rows]
            draws = torch.stack(
                [
                    uniforms(
                        self._seed, purpose, update, r.sample, tokens=self._params.max_new_tokens
                    )
                    for r in part
                ]
            )
            writing = Writing([r.prompt.ids for r in part], draws.to(device), self._policy)
            drawn = self._write(writing)
            for row, written, reason, found in zip(
                rows, writing.written, writing.reasons, drawn, strict=True
            ):
                ids[row], reasons[row] = written, reason
                logprobs[row] = tuple(found[: len(written)])
        return Rollout(
            sequences=pack([r.prompt.ids for r in requests], ids, device=device),
            prompts=tuple(r.prompt for r in requests),
            texts=tuple(self._text(row) for row in ids),
            stop_reasons=tuple(reasons),
            group_ids=tuple(r.group for r in requests),
            samples=tuple(r.sample for r in requests),
            update=update,
            logprobs=tuple(logprobs) if self._params.truncated else None,
        )

    def _batches(self, requests: Sequence[Request]) -> Iterator[list[int]]:
        """Which requests are answered together: all, or those that need no padding."""
        groups: dict[int, list[int]] = {}
        for row, request in enumerate(requests):
            groups.setdefault(0 if self._policy.padded else len(request.prompt.ids), []).append(row)
        size = self.batch or len(requests)
        for rows in groups.values():
            yield from (rows[start : start + size] for start in range(0, len(rows), size))

    def _write(self, writing: Writing) -> list[list[float]]:
        """Write to the end.

        Returns:
          For each row the log-probabilities of its tokens by a truncated distribution, and of some that
          were drawn once it was finished.
        """
        params = self._params
        drawn: list[list[float]] = [[] for _ in writing.written]
        eos = torch.tensor(self._eos, device=writing.draws.device)
        for step in range(params.max_new_tokens):
            logits = writing.next_logits()
            kept = keep(logits, top_k=params.top_k, top_p=params.top_p, min_p=params.min_p)
            if not bool(kept.amax(-1).isfinite().all()):
                raise RunError(
                    "the policy's logits are not finite, so no token can be sampled: its weights are "
                    "broken. Look at train/grad_norm and loss/* of the updates before"
                )
            chosen = inverse_cdf(kept, writing.draws[writing.rows, step])
            if params.truncated:
                found = log_probability(kept, chosen).tolist()
                for row, value in zip(writing.rows.tolist(), found, strict=True):
                    drawn[row].append(value)
            ended = torch.isin(chosen, eos).tolist()
            writing.append(chosen.tolist())
            for slot, over in enumerate(ended):
                if over:
                    writing.finish(slot, StopReason.EOS)
                elif params.stop_strings and self._stopped(writing.row(slot)):
                    writing.finish(slot, StopReason.STOP_STRING)
            if not writing.advance(chosen):
                break
        return drawn

    def _stopped(self, ids: list[int]) -> bool:
        # A character is at most four byte tokens, so this many tokens hold the longest stop string.
        tail = self._tokenizer.decode(ids[-4 * max(map(len, self._params.stop_strings)) - 1 :])
        return any(stop in tail for stop in self._params.stop_strings)

    def _text(self, ids: list[int]) -> str:
        text = str(self._tokenizer.decode(ids, skip_special_tokens=True))
        ends = [at for stop in self._params.stop_strings if (at := text.find(stop)) >= 0]
        return text[: min(ends)] if ends else text


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
