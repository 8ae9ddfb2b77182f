"""What is reported to observers: one frozen event for each moment, made of plain values.

An observer reads an event, and changes nothing in it: every other observer is given the same one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlframe.types import StopReason


@dataclass(frozen=True)
class ScoredResponse:
    """One response, with what the rewards made of it."""

    sample: int
    """The number of the response among those of all ranks, from 0."""
    group: int
    """Equal for responses to the same prompt."""
    prompt: str
    """The prompt as the policy read it, with templates applied."""
    response: str
    """The response, which ends before a stop string or a special token."""
    stop_reason: StopReason
    """Why the response ended."""
    score: float | None
    """The mix of the rewards, without KL; None for an invalid response, which teaches nothing."""
    rewards: Mapping[str, float | None]
    """For each reward of the recipe, its score before transforms, gates and weight. None where the
    reward returned None."""


@dataclass(frozen=True)
class RunStarted:
    """PPO is about to begin."""

    directory: Path
    """The run directory."""
    resolved: Mapping[str, Any]
    """The recipe with every default."""


@dataclass(frozen=True)
class RolloutScored:
    """The responses of an update on one rank, with their scores."""

    update: int
    """The number of the update, from 0."""
    responses: Sequence[ScoredResponse]
    """This rank's responses. Their score is what PPO sees: transforms and gates are applied."""


@dataclass(frozen=True)
class HeldoutEvaluated:
    """The held-out prompts were answered and scored."""

    name: str
    """That of the file in `samples/` with the responses: "before", "after" or "update_NUMBER"."""
    updates: int
    """How many updates the policy has made."""
    responses: Sequence[ScoredResponse]
    """The responses of all ranks, in the order of `sample`. Their score has no transforms, so that
    evaluations can be compared with each other."""


@dataclass(frozen=True)
class Metrics:
    """The metrics of an update over all ranks, as `metrics.jsonl` has them."""

    update: int
    """The number of the update, from 0."""
    figures: Mapping[str, float]
    """The values by name."""


@dataclass(frozen=True)
class CheckpointSaved:
    """A checkpoint is complete on disk."""

    update: int
    """The number of the update after which it was saved, from 0."""
    directory: Path
    """The directory of the checkpoint."""


@dataclass(frozen=True)
class RunFinished:
    """PPO has ended, with or without an error."""

    error: BaseException | None
    """What ended the run early, or None."""
