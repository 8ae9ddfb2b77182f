"""How the kit asks a reward provider, and reads and compares its answers."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from rlframe.api.answers import awaited, raw_scores
from rlframe.api.component import RewardProvider
from rlframe.testing.check import Broken, kept
from rlframe.testing.subject import Subject
from rlframe.testing.world import reward_batch
from rlframe.types import RewardBatch

Reward = Subject[RewardProvider[Any]]
Values = list[list[float] | None]
"""One entry a response: its score alone, or one number a token, or None."""


def batch_of(subject: Reward) -> RewardBatch:
    return reward_batch(subject.context, data=subject.columns, responses=subject.texts)


def with_responses_moved(batch: RewardBatch, index: Sequence[int]) -> RewardBatch:
    """The same prompts, answered by the responses at these places."""
    moved = batch.rows(index)
    ids = [list(ids) for ids in moved.response_ids]
    return batch.with_responses(moved.response_texts, ids, moved.stop_reasons)


def asked(provider: RewardProvider[Any], batch: RewardBatch, *, seed: int = 0) -> Any:
    """The provider's answer as the engine asks: without gradient, with a generator of its own."""
    with torch.no_grad():
        answer = provider.score(replace(batch, generator=torch.Generator().manual_seed(seed)))
    with kept("a response"):
        return awaited(answer)


def scores_of(subject: Reward, batch: RewardBatch) -> Values:
    """The answer to a batch, in the state in which the provider was built."""
    if subject.initial_state:
        subject.instance.load_state_dict(copy.deepcopy(subject.initial_state))
    return values_of(asked(subject.instance, batch), batch)


def values_of(answer: Any, batch: RewardBatch) -> Values:
    with kept("a response"):
        return raw_scores(answer, batch.response_lengths)


def compare(expected: Values, found: Values, batch: RewardBatch, when: str) -> None:
    for number, (before, after) in enumerate(zip(expected, found, strict=True)):
        if not _equal(before, after):
            text = batch.response_texts[number]
            raise Broken(
                f"response {number} ({text[:40]!r}) scored {shown(before)}, and {shown(after)} {when}"
            )


def _equal(before: list[float] | None, after: list[float] | None) -> bool:
    if before is None or after is None:
        return before is after
    return len(before) == len(after) and all(map(_same, before, after))


def _same(left: float, right: float) -> bool:
    """Equal but for the rounding of another rectangle of floats."""
    both_nan = math.isnan(left) and math.isnan(right)
    return both_nan or math.isclose(left, right, rel_tol=1e-4, abs_tol=1e-5)


def shown(row: list[float] | None) -> str:
    if row is None:
        return "None"
    return f"{row[0]:.6g}" if len(row) == 1 else f"[{', '.join(f'{x:.6g}' for x in row[:4])}...]"


def remark(values: Values) -> str | None:
    """A reward that answers everything alike would pass whatever it did."""
    if all(row is None for row in values):
        return "proves little: no response was judged; give `responses` that are"
    if all(row == values[0] for row in values):
        return (
            f"proves little: every response scored {shown(values[0])}; give `responses` that differ"
        )
    return None
