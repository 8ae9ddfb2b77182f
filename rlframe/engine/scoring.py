"""Rewards: every provider of the recipe is asked, checked, transformed, gated and added up.

A provider that raises, returns a wrong number of values or a value that is not finite ends the run
with its name, its distribution and the sample. Nothing ever becomes 0 silently: for a reward that can
be negative, 0 is better than average.

The mix is Σ_r (Π_g gate_g) weight_r score_r, where g are the gates that act on reward r, and score_r
has gone through the reward's transforms. Only training goes through transforms: held-out scores are
compared with each other over the whole run.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

import torch
from torch import Tensor

from rlframe.api.algorithm import RewardTransform
from rlframe.api.answers import LARGEST, ContractError, gate_factors, token_scores
from rlframe.api.component import Instance, RewardProvider
from rlframe.distributed.runtime import Runtime
from rlframe.engine.asking import TimeLimit, culprit, described
from rlframe.engine.transforming import TransformChain
from rlframe.errors import RunError
from rlframe.functional.rewards import response_mask
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
    transforms: tuple[Instance[RewardTransform[Any]], ...] = ()
    """In the order in which they are applied, before the weight."""
    gates: tuple[str, ...] | None = None
    """Names of the rewards that its gate acts on; None for all that have no gate."""


@dataclass(frozen=True)
class Scores:
    """What the rewards gave the responses of a rollout."""

    rewards: Tensor
    """[B, T] the mix that PPO sees, scores on the last generated token; no KL in it."""
    untransformed: Tensor
    """[B] what the mix would be without transforms."""
    raw: dict[str, Tensor]
    """Name -> [B] score before its transforms and its weight; token rewards count as their sum."""
    weighted: dict[str, Tensor]
    """Name -> [B] score after transforms, times weight and gates: what it adds to the mix."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    """NAME/KEY -> what the transforms of a reward tell of their state; the same on all ranks."""

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
      runtime: the processes.
      updates: how many there will be.
      seed: of the run.
    """

    def __init__(
        self,
        rewards: Sequence[WeightedReward],
        relay: Relay,
        *,
        sample_reference: Callable[[Rollout], Rollout] | None,
        runtime: Runtime,
        updates: int,
        seed: int,
    ) -> None:
        self._rewards = rewards
        self._relay = relay
        self._sample_reference = sample_reference
        self._seed = seed
        self._rank = runtime.rank
        self._gating = [reward for reward in rewards if self._has_gate(reward)]
        self._chains = {
            r.instance.name: TransformChain(r.transforms, relay, runtime, updates)
            for r in rewards
            if r.transforms
        }

    @property
    def instances(self) -> list[Instance[Any]]:
        """The rewards and their transforms, in the recipe's order."""
        found: list[Instance[Any]] = []
        for reward in self._rewards:
            found += [reward.instance, *reward.transforms]
        return found

    def state_dict(self) -> dict[str, list[dict[str, Any]]]:
        """The states of each reward's transforms, in their order."""
        return {name: list(chain.states) for name, chain in self._chains.items()}

    def load_state_dict(self, state: Mapping[str, list[dict[str, Any]]]) -> None:
        """Take back what `state_dict` gave; a reward that had other transforms begins again."""
        for name in self._chains.keys() & state.keys():
            if len(state[name]) == len(self._chains[name].states):
                self._chains[name].states = list(state[name])

    def score(self, rollout: Rollout) -> Scores:
        """Score what the policy is to learn from. Collective: call on all ranks."""
        return self._score(rollout, training=True)

    def heldout(self, rollout: Rollout) -> Scores:
        """Score without transforms: evaluations are compared with each other over the whole run."""
        return self._score(rollout, training=False)

    @torch.no_grad()
    def _score(self, rollout: Rollout, *, training: bool) -> Scores:
        batch = self._batch(rollout)
        lengths = rollout.sequences.response_lengths
        mask = response_mask(lengths, width=int(lengths.max()))
        nothing = torch.zeros(mask.shape, dtype=torch.float64, device=mask.device)
        raw = {r.instance.name: self._values(r, batch, nothing) for r in self._rewards}
        values, metrics = dict(raw), dict[str, float]()
        for name, chain in self._chains.items() if training else ():
            values[name] = chain.apply(raw[name], batch)
            metrics |= {f"{name}/{key}": value for key, value in chain.metrics().items()}
        gates = self._gates(batch, like=nothing)
        parts = {r.instance.name: r.weight * gates[r.instance.name] for r in self._rewards}
        mix = sum((parts[name][:, None] * values[name] for name in values), nothing)
        self._refuse_infinite(mix, parts, values, batch)
        return Scores(
            rewards=mix,
            untransformed=sum((parts[n] * raw[n].sum(-1) for n in raw), nothing.sum(-1)),
            raw={name: found.sum(-1) for name, found in raw.items()},
            weighted={name: parts[name] * found.sum(-1) for name, found in values.items()},
            metrics=metrics,
        )

    def _gates(self, batch: RewardBatch, like: Tensor) -> dict[str, Tensor]:
        """Name -> [B] the product of the gates that act on a reward."""
        found = {r.instance.name: like.new_ones(len(like)) for r in self._rewards}
        free = [r.instance.name for r in self._rewards if r not in self._gating]
        for reward in self._gating:
            factors = self._gate(reward, batch)
            if factors is not None:
                for name in free if reward.gates is None else reward.gates:
                    found[name] = found[name] * like.new_tensor(factors)
        return found

    def _has_gate(self, reward: WeightedReward) -> bool:
        """Whether it multiplies other rewards."""
        component = reward.instance.component
        with self._relay.named("reward", reward.instance):
            return reward.weight != 0 and bool(type(component).has_gate(component.config))

    def _gate(self, reward: WeightedReward, batch: RewardBatch) -> list[float] | None:
        with self._relay.named("reward", reward.instance):
            answer = self._relay.hook.rlframe_gate(provider=reward.instance.component, batch=batch)
        try:
            return None if answer is None else gate_factors(answer, len(batch))
        except ContractError as error:
            around = self._relay.around("rlframe_gate")
            raise RunError(
                f"reward {reward.instance}{around} {error}.\n{described(batch, error.row)}"
            ) from error

    def _refuse_infinite(
        self,
        mix: Tensor,
        parts: Mapping[str, Tensor],
        values: Mapping[str, Tensor],
        batch: RewardBatch,
    ) -> None:
        bad = ~(mix.abs() <= LARGEST).all(-1)
        if not bool(bad.any()):
            return
        row = int(bad.nonzero()[0])
        largest = max(
            values, key=lambda name: float((parts[name] * values[name].sum(-1)).abs()[row])
        )
        weight = next(r.weight for r in self._rewards if r.instance.name == largest)
        raise RunError(
            f"the mix is not finite, or too large for float32. The largest part of it is reward "
            f"{largest!r} times its weight of {weight:g}.\n{described(batch, row)}"
        )

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
