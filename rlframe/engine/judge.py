"""Rewards: every provider of the recipe is asked, checked and added up, in the recipe's order.

A provider that raises, returns a wrong number of values or a value that is not finite ends the run
with its name, its distribution and the sample. Nothing ever becomes 0 silently: for a reward that can
be negative, 0 is better than average.

A reward may be divided by the standard deviation of all its scores so far (Engstrom et al. 2020,
"Implementation Matters in Deep RL", https://arxiv.org/abs/2005.12729, scale rewards so). Statistics
are of raw scores, over all ranks, and only training adds to them.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from numbers import Real
from typing import Any, Literal

import torch
from torch import Tensor

from rlframe.errors import RunError
from rlframe.functional.rewards import response_mask
from rlframe.functional.running import Running, normalised, statistics
from rlframe.hooks.component import Instance, RewardProvider
from rlframe.hooks.relay import Relay
from rlframe.rollout.seeds import stream
from rlframe.types import RewardBatch, Rollout


@dataclass(frozen=True)
class WeightedReward:
    """One named reward of the mix."""

    instance: Instance[RewardProvider[Any]]
    weight: float
    time_limit_seconds: float | None = None
    """For one call on a rollout; None for none."""
    normalize: Literal["none", "scale", "standardize"] = "none"
    """By the scores so far: divided by their standard deviation, or their mean taken off before."""


@dataclass(frozen=True)
class Judgement:
    """What the rewards said about a rollout."""

    rewards: Tensor
    """[B, T] the mix, scores on the last generated token; no KL in it."""
    raw: dict[str, Tensor]
    """Name -> [B] score before its weight; a row of token rewards counts as its sum."""
    weighted: dict[str, Tensor]
    """Name -> [B] score, normalised if the recipe says so, times weight: what is added."""
    running: Mapping[str, Running]
    """Name -> statistics by which a reward was normalised; of those alone that are."""

    @property
    def scores(self) -> Tensor:
        """[B] the mix, one number a response."""
        return self.rewards.sum(-1)


class Judge:
    """Asks each reward provider about a rollout.

    Args:
      rewards: in the recipe's order.
      relay: components are called through it.
      sample_reference: draws a response of the reference model for each prompt of a rollout.
      reduce: sums a tensor over ranks.
      seed: of the run.
      rank: of this process.
    """

    def __init__(
        self,
        rewards: Sequence[WeightedReward],
        relay: Relay,
        *,
        sample_reference: Callable[[Rollout], Rollout] | None,
        reduce: Callable[[Tensor], Tensor],
        seed: int,
        rank: int,
    ) -> None:
        self._rewards = rewards
        self._relay = relay
        self._sample_reference = sample_reference
        self._seed = seed
        self._rank = rank
        self._reduce = reduce
        self._running = {r.instance.name: Running() for r in rewards if r.normalize != "none"}

    def state_dict(self) -> dict[str, list[float]]:
        """Number, mean and squared deviations of the scores so far, of each normalised reward."""
        return {name: list(seen) for name, seen in self._running.items()}

    def load_state_dict(self, state: Mapping[str, Sequence[float]]) -> None:
        """Take back what `state_dict` gave; a reward that was not normalised then begins anew."""
        for name in self._running.keys() & state.keys():
            number, mean, square = state[name]
            self._running[name] = Running(int(number), mean, square)

    def __call__(self, rollout: Rollout) -> Judgement:
        """Judge what the policy is to learn from. Every rank has to call it."""
        return self._judge(rollout, training=True)

    def heldout(self, rollout: Rollout) -> Judgement:
        """Judge without normalising: looks are compared with each other over the whole run."""
        return self._judge(rollout, training=False)

    @torch.no_grad()
    def _judge(self, rollout: Rollout, *, training: bool) -> Judgement:
        batch = self._batch(rollout)
        lengths = rollout.sequences.response_lengths
        mask = response_mask(lengths, width=int(lengths.max()))
        total = torch.zeros(mask.shape, dtype=torch.float64, device=mask.device)
        raw, weighted = {}, {}
        for reward in self._rewards:
            values = self._values(reward, batch, total)
            name = reward.instance.name
            raw[name] = values.sum(-1)
            if training and name in self._running:
                seen = statistics(raw[name], self._reduce)
                self._running[name] = self._running[name].joined(seen)
                center = reward.normalize == "standardize"
                values = normalised(values, lengths, self._running[name], center=center)
            weighted[name] = values.sum(-1) * reward.weight
            total = reward.instance.component.combine(total, values * reward.weight, batch)
        return Judgement(total, raw, weighted, dict(self._running))

    def _batch(self, rollout: Rollout) -> RewardBatch:
        batch = RewardBatch(
            prompts=rollout.prompts,
            response_texts=rollout.texts,
            response_ids=rollout.response_ids(),
            stop_reasons=rollout.stop_reasons,
            group_ids=rollout.group_ids,
            update=rollout.update,
            generator=stream(self._seed, "reward", rollout.update, self._rank),
        )
        draw = self._sample_reference
        if draw is None:
            return batch

        @cache  # providers of one rollout share the reference's responses
        def reference() -> RewardBatch:
            other = draw(rollout)
            return batch.with_responses(other.texts, other.response_ids(), other.stop_reasons)

        return replace(batch, sample_reference=reference)

    def _values(self, reward: WeightedReward, batch: RewardBatch, like: Tensor) -> Tensor:
        """[B, T] what one provider gives each token, checked."""
        instance = reward.instance

        def ask() -> Any:
            return self._relay.hook.rlframe_score(provider=instance.component, batch=batch)

        seconds = reward.time_limit_seconds
        with self._relay.named("reward", instance, detail=lambda: self._culprit(instance, batch)):
            scores = ask() if seconds is None else _within(seconds, ask)
        if scores is _NOTHING:
            raise RunError(
                f"reward {instance} has not answered within {seconds:g} seconds (time_limit_seconds). "
                "Is its server gone? Checkpoints are as they were: `rlframe resume RUN` goes on"
            )
        if not hasattr(scores, "__len__") or len(scores) != len(batch):
            found = f"{len(scores)} values" if hasattr(scores, "__len__") else repr(scores)
            raise RunError(
                f"reward {instance} returned {found} for {len(batch)} responses; it must return one "
                f"for each.\n{_described(batch, 0)}"
            )
        values = torch.zeros_like(like)
        for row, score in enumerate(scores):
            length = len(batch.response_ids[row])
            per_token = _per_token(score, length)
            if per_token is None:
                raise RunError(
                    f"reward {instance} returned {score!r} for a response of {length} tokens; it must "
                    f"be a finite number, or one for each token.\n{_described(batch, row)}"
                )
            values[row, length - len(per_token) : length] = torch.tensor(
                per_token, dtype=values.dtype, device=values.device
            )
        return values

    def _culprit(self, instance: Instance[RewardProvider[Any]], batch: RewardBatch) -> str:
        """The first response on which the provider fails alone: the run is over, so look for it."""
        for row in range(len(batch)):
            try:
                self._relay.hook.rlframe_score(provider=instance.component, batch=batch.rows([row]))
            except Exception:
                return _described(batch, row)
        return f"No response fails alone; the first of {len(batch)}:\n{_described(batch, 0)}"


_NOTHING = object()


def _within(seconds: float, ask: Callable[[], Any]) -> Any:
    """What `ask` returns or raises; _NOTHING if it takes longer: its thread dies with the run."""
    came: list[tuple[Any, Exception | None]] = []

    def work() -> None:
        try:
            with torch.no_grad():  # belongs to a thread
                came.append((ask(), None))
        except Exception as error:
            came.append((None, error))

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(seconds)
    if not came:
        return _NOTHING
    ((scores, error),) = came
    if error is not None:
        raise error
    return scores


def _per_token(score: Any, length: int) -> list[float] | None:
    """[score] for a number, the row for a row of `length` numbers; None for anything else."""
    value = score.tolist() if isinstance(score, Tensor) else score
    row = list(value) if isinstance(value, list | tuple) else [value]
    if len(row) != (length if isinstance(value, list | tuple) else 1):
        return None
    if not all(isinstance(x, Real) and math.isfinite(x) for x in row):
        return None
    return [float(x) for x in row]


def _described(batch: RewardBatch, row: int) -> str:
    return (
        f"  sample {row} of update {batch.update}, ended by {batch.stop_reasons[row].value}\n"
        f"  prompt:   {batch.prompts[row].text!r}\n"
        f"  response: {batch.response_texts[row]!r}"
    )
