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
    """The run directory."""
    updates: int
    """The number of updates of the whole run."""
    resolved: Mapping[str, Any]
    """The recipe with every default."""


@dataclass(frozen=True)
class RolloutFinished:
    """The responses of an update on one rank, before they are scored."""

    rollout: Rollout
    """The responses with their prompts."""


@dataclass(frozen=True)
class ExperienceReady:
    """A rollout was scored and its advantages are known; the policy's update comes next.

    With several processes these are not the responses of `RolloutFinished`: they were rebalanced, so
    that each rank has as many tokens to learn from.
    """

    rollout: Rollout
    """The responses with their prompts."""
    raw_rewards: Mapping[str, Tensor]
    """For each reward of the recipe, [B] scores before its weight; NaN where it returned None."""
    mask: Tensor
    """[B, T] bool, True on the tokens of valid responses, which are learned from."""
    rewards: Tensor
    """[B, T] reward of each token, KL penalty included, after any whitening; 0 without the mask."""
    advantages: Tensor
    """[B, T] advantage of each token, after any whitening; 0 without the mask."""
    returns: Tensor | None
    """[B, T] the critic's target at each token; None without a critic."""


@dataclass(frozen=True)
class UpdateFinished:
    """The policy has learned from a rollout, and the KL controller has chosen its next coefficient."""

    update: int
    """The number of the update, from 0."""
    measured: KLMeasurement
    """The KL of the rollout."""
    kl: KLState
    """The state whose coefficient this update used."""
    next_kl: KLState
    """The state whose coefficient the next update uses."""


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

    directory: Path
    """The run directory."""
    error: BaseException | None
    """What ended the run early, or None."""
