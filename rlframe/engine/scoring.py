"""Rewards: every provider of the recipe is asked, checked and added up, in the recipe's order.

A provider that raises, returns a wrong number of values or a value that is not finite ends the run
with its name, its distribution and the sample. Nothing ever becomes 0 silently: for a reward that can
be negative, 0 is better than average.

A reward may be divided by the standard deviation of all its scores so far (Engstrom et al. 2020,
"Implementation Matters in Deep RL", https://arxiv.org/abs/2005.12729, scale rewards so). Statistics
are of raw scores, over all ranks, and only training adds to them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, Literal

import torch
from torch import Tensor

from rlframe.api.answers import LARGEST, ContractError, shown, token_scores
from rlframe.api.component import Instance, RewardProvider
from rlframe.engine.asking import TimeLimit, culprit, described
from rlframe.errors import RunError
from rlframe.functional.rewards import response_mask
from rlframe.functional.running import Running, normalised, statistics
from rlframe.registry.relay import Relay
from rlframe.rollout.seeds import stream
from rlframe.types import RewardBatch, Rollout


@dataclass(frozen=True)
class WeightedReward:
    """One named reward of the mix."""

    instance: Instance[RewardProvider[Any]]
    weight: float
    time_limit_seconds: float | None = None
    """For one call on a rollout, wrappers and the search for a response at fault included; None for
    none."""
    normalize: Literal["none", "scale", "standardize"] = "none"
    """By the scores so far: divided by their standard deviation, or their mean taken off before."""


@dataclass(frozen=True)
class Scores:
    """What the rewards gave the responses of a rollout."""

    rewards: Tensor
    """[B, T] the mix, scores on the last generated token; no KL in it."""
    raw: dict[str, Tensor]
    """Name -> [B] score before its weight; a row of token rewards counts as its sum."""
    weighted: dict[str, Tensor]
    """Name -> [B] score, normalised if the recipe says so, times weight: what is added."""
    running: Mapping[str, Running]
    """Name -> statistics by which a reward was normalised; of those alone that are."""

    @property
    def mix(self) -> Tensor:
        """[B] the mix, one number per response."""
        return self.rewards.sum(-1)


class RewardScorer:
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

    @property
    def instances(self) -> list[Instance[RewardProvider[Any]]]:
        """The rewards, in the recipe's order."""
        return [reward.instance for reward in self._rewards]

    def state_dict(self) -> dict[str, list[float]]:
        """Number, mean and squared deviations of the scores so far, of each normalised reward."""
        return {name: list(seen) for name, seen in self._running.items()}

    def load_state_dict(self, state: Mapping[str, Sequence[float]]) -> None:
        """Take back what `state_dict` gave; a reward that was not normalised then begins anew."""
        for name in self._running.keys() & state.keys():
            number, mean, square = state[name]
            self._running[name] = Running(int(number), mean, square)

    def score(self, rollout: Rollout) -> Scores:
        """Score what the policy is to learn from. Collective: call on all ranks."""
        return self._score(rollout, training=True)

    def heldout(self, rollout: Rollout) -> Scores:
        """Score without normalising: evaluations are compared with each other over the whole run."""
        return self._score(rollout, training=False)

    @torch.no_grad()
    def _score(self, rollout: Rollout, *, training: bool) -> Scores:
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
            total = self._joined(reward, total, values * reward.weight, batch)
        return Scores(total, raw, weighted, dict(self._running))

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
        instance, lengths = reward.instance, batch.response_lengths
        answer = self._answer(reward, batch)
        try:
            rows = token_scores(answer, lengths)
        except ContractError as error:
            around = self._relay.around("rlframe_score")
            raise RunError(
                f"reward {instance}{around} {error}.\n{described(batch, error.row)}"
            ) from error
        values = torch.zeros_like(like)
        for row, (length, score) in enumerate(zip(lengths, rows, strict=True)):
            values[row, length - len(score) : length] = values.new_tensor(score)
        return values

    def _answer(self, reward: WeightedReward, batch: RewardBatch) -> Any:
        """What one provider returns, as it is, within its time."""
        instance, seconds = reward.instance, reward.time_limit_seconds
        limit = TimeLimit(seconds, name=f"reward {instance}")

        def ask(part: RewardBatch) -> Any:
            return self._relay.hook.rlframe_score(provider=instance.component, batch=part)

        answer = limit.call(lambda: ask(batch))
        if answer is None:
            raise RunError(
                f"reward {instance} has not answered within {seconds:g} seconds (time_limit_seconds). "
                "Is its server gone? Checkpoints are as they were: `rlframe resume RUN` goes on"
            )

        def detail() -> str:
            assert answer.error is not None
            if isinstance(answer.error, ContractError):  # of a reward inside of it, which it asked
                return described(batch, answer.error.row)
            if instance.component.cheap_to_repeat:
                return culprit(ask, batch, answer.error, limit)
            return (
                f"Which of {len(batch)} responses it was is not known: the reward does not say that it "
                f"is cheap to repeat. The first:\n{described(batch, 0)}"
            )

        with self._relay.named("reward", instance, detail=detail):
            return answer.result()

    def _joined(
        self, reward: WeightedReward, total: Tensor, values: Tensor, batch: RewardBatch
    ) -> Tensor:
        """[B, T] the mix with one more reward in it; a weight of 0 changes nothing, whatever it
        does.
        """
        if reward.weight == 0:
            return total
        with self._relay.named("reward", reward.instance):
            found: Any = reward.instance.component.combine(total, values, batch)
        sound = isinstance(found, Tensor) and (found.shape, found.dtype) == (
            total.shape,
            total.dtype,
        )
        if not sound:
            raise RunError(
                f"reward {reward.instance} returned {shown(found)} from `combine`; it must return "
                f"the mix as it was given, {total.dtype} of shape {tuple(total.shape)}"
            )
        bad = ~(found.abs() <= LARGEST).all(-1)
        if bool(bad.any()):
            row = int(bad.nonzero()[0])
            raise RunError(
                f"the mix is not finite, or too large for float32, with reward {reward.instance} times "
                f"its weight of {reward.weight:g}.\n{described(batch, row)}"
            )
        joined: Tensor = found
        return joined
