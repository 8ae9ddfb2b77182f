"""What observers are told: one frozen event a moment. Reading is free, changing is impossible or rude.

Tensors inside an event are the engine's own; an observer that wants to change one makes a copy.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlframe.types import KLMeasurement, KLState, Rollout

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class RunStarted:
    """PPO is about to sample its first rollout."""

    directory: Path
    updates: int
    """Of the whole run."""
    resolved: Mapping[str, Any]
    """The recipe with every default."""


@dataclass(frozen=True)
class RolloutFinished:
    """The responses of an update on one rank, before anybody judged them."""

    rollout: Rollout


@dataclass(frozen=True)
class ExperienceReady:
    """A rollout was judged and credited; learning comes next. All tensors are [B, T].

    With several processes these are not the responses of `RolloutFinished`: they have changed ranks, so
    that all have as much to learn from.
    """

    rollout: Rollout
    raw_rewards: Mapping[str, Tensor]
    """Reward's name -> [B] score before its weight."""
    mask: Tensor
    rewards: Tensor
    """Score and KL penalty for each token."""
    advantages: Tensor
    returns: Tensor


@dataclass(frozen=True)
class UpdateFinished:
    """The policy has learned from a rollout and beta has been chosen anew."""

    update: int
    """From 0."""
    measured: KLMeasurement
    kl: KLState
    """The state whose coefficient this update used."""
    next_kl: KLState


@dataclass(frozen=True)
class Metrics:
    """The figures of an update, as metrics.jsonl gets them; over all ranks."""

    update: int
    """From 0."""
    figures: Mapping[str, float]


@dataclass(frozen=True)
class CheckpointSaved:
    """A checkpoint lies on disk, complete."""

    update: int
    """The update after which it was taken, from 0."""
    directory: Path


@dataclass(frozen=True)
class RunFinished:
    """PPO is over, well or not."""

    directory: Path
    error: BaseException | None
    """What ended the run early, or None."""
