"""Writing responses: one forward pass a token over the rows that are still being written.

A token is the inverse CDF at a uniform number that belongs to its response, so the same responses
come out whatever the batch. Finished rows leave the batch. Nothing of size [B, T, V] exists: the head
runs on the last position alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from transformers import PreTrainedTokenizerBase

from rlframe.api.sampling import SampledPolicy, SampleRequest, Samples, SamplingParams
from rlframe.errors import RunError
from rlframe.functional.sampling import inverse_cdf, keep, log_probability
from rlframe.rollout.seeds import uniforms
from rlframe.rollout.writing import Writing
from rlframe.types import StopReason


@torch.no_grad()
def decode(
    policy: SampledPolicy,
    tokenizer: PreTrainedTokenizerBase,
    requests: Sequence[SampleRequest],
    params: SamplingParams,
    *,
    device: torch.device,
    version: int,
) -> Samples:
    """One response to each request.

    Args:
      policy: asked for the next token's logits.
      tokenizer: for stop strings.
      requests: at least one.
      params: lengths, filters, stop strings.
      device: where the policy is.
      version: of its weights.

    Raises:
      RunError: the policy's logits are not finite.
    """
    ids: list[list[int]] = [[] for _ in requests]
    reasons = [StopReason.LENGTH] * len(requests)
    logprobs: list[list[float]] = [[] for _ in requests]
    for rows in _batches(requests, params.batch, padded=policy.padded):
        part = [requests[row] for row in rows]
        draws = torch.stack([uniforms(r.seed, tokens=params.max_new_tokens) for r in part])
        writing = Writing([r.prompt_ids for r in part], draws.to(device), policy)
        drawn = _write(writing, tokenizer, params)
        for row, written, reason, found in zip(
            rows, writing.written, writing.reasons, drawn, strict=True
        ):
            ids[row], reasons[row] = written, reason
            logprobs[row] = found[: len(written)]
    return Samples(ids, reasons, version, logprobs if params.logprobs else None)


def _batches(
    requests: Sequence[SampleRequest], batch: int | None, *, padded: bool
) -> Iterator[list[int]]:
    """Which requests are answered together: all, or those that need no padding."""
    groups: dict[int, list[int]] = {}
    for row, request in enumerate(requests):
        groups.setdefault(0 if padded else len(request.prompt_ids), []).append(row)
    size = batch or len(requests)
    for rows in groups.values():
        yield from (rows[start : start + size] for start in range(0, len(rows), size))


def _write(
    writing: Writing, tokenizer: PreTrainedTokenizerBase, params: SamplingParams
) -> list[list[float]]:
    """Write to the end.

    Returns:
      For each row the log-probabilities of its tokens, if they are asked for, and of some that were
      drawn once it was finished.
    """
    drawn: list[list[float]] = [[] for _ in writing.written]
    eos = torch.tensor(sorted(params.eos_ids), device=writing.draws.device)
    for step in range(params.max_new_tokens):
        logits = writing.next_logits()
        kept = keep(logits, top_k=params.top_k, top_p=params.top_p, min_p=params.min_p)
        if not bool(kept.amax(-1).isfinite().all()):
            raise RunError(
                "the policy's logits are not finite, so no token can be sampled: its weights are "
                "broken. Look at train/grad_norm and loss/* of the updates before"
            )
        chosen = inverse_cdf(kept, writing.draws[writing.rows, step])
        if params.logprobs:
            found = log_probability(kept, chosen).tolist()
            for row, value in zip(writing.rows.tolist(), found, strict=True):
                drawn[row].append(value)
        ended = torch.isin(chosen, eos).tolist()
        writing.append(chosen.tolist())
        for slot, over in enumerate(ended):
            if over:
                writing.finish(slot, StopReason.EOS)
            elif _stopped(writing.row(slot), tokenizer, params.stop_strings):
                writing.finish(slot, StopReason.STOP_STRING)
        if not writing.advance(chosen):
            break
    return drawn


def _stopped(
    ids: list[int], tokenizer: PreTrainedTokenizerBase, stop_strings: tuple[str, ...]
) -> bool:
    if not stop_strings:
        return False
    # A character is at most four byte tokens, so this many tokens hold the longest stop string.
    tail = tokenizer.decode(ids[-4 * max(map(len, stop_strings)) - 1 :])
    return any(stop in tail for stop in stop_strings)
