"""Rewards: every provider of the recipe is asked, checked, transformed, gated and added up.

A provider that raises, returns a wrong number of values or a value that is not finite ends the run
with its name, its distribution and the sample. Nothing ever becomes 0 silently: for a reward that can
be negative, 0 is better than average.

The mix is Σ_r (Π_g gate_g) weight_r score_r, where g are the gates that act on reward r, and score_r
has gone through the reward's transforms. Only training goes through transforms: held-out scores are
compared with each other over the whole run.

A reward that returns None for a response adds nothing to its mix. A response is invalid if no reward
judged it, or if one that says so (`on_none: invalid`) did not: it is masked, and never removed, since
ranks and sampled numbers would fall out of step.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

import torch
from torch import Tensor

from rlframe.api.algorithm import RewardTransform
from rlframe.api.answers import LARGEST, ContractError, gate_factors, token_scores
from rlframe.api.component import Instance, RewardProvider
from rlframe.api.events import ScoredResponse
from rlframe.api.unchanged import Given, Surroundings
from rlframe.distributed.runtime import Runtime
from rlframe.engine.asking import TimeLimit, culprit, described
from rlframe.engine.reward_log import RewardFigures
from rlframe.engine.transforming import TransformChain
from rlframe.errors import RunError
from rlframe.functional.rewards import response_mask
from rlframe.registry.owners import component_errors
from rlframe.registry.relay import Relay
from rlframe.rollout.seeds import stream
from rlframe.types import OnNone, RewardBatch, Rollout


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
    on_none: OnNone = "skip"
    """What None means for the response."""


@dataclass(frozen=True)
class Scores:
    """What the rewards gave the responses of a rollout."""

    rewards: Tensor
    """[B, T] the mix that PPO sees, scores on the last generated token; no KL in it. 0 where the
    response is invalid."""
    valid: Tensor
    """[B] bool, False for a response that nothing may be learned from."""
    untransformed: Tensor
    """[B] what the mix would be without transforms."""
    raw: dict[str, Tensor]
    """Name -> [B] score before its transforms and its weight; token rewards count as their sum. NaN
    where the reward returned None."""
    weighted: dict[str, Tensor]
    """Name -> [B] score after transforms, times weight and gates: what it adds to the mix."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    """NAME/KEY -> what the transforms of a reward tell of their state; the same on all ranks."""
    logged: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    """NAME/KEY -> sum and number of what a reward logged on this rank; the same names on all ranks."""
    entries: Sequence[Mapping[str, float | str]] = ()
    """Of held-out responses, one mapping per response: NAME/KEY -> what a reward logged for it."""

    @property
    def mix(self) -> Tensor:
        """[B] the mix, one number per response."""
        return self.rewards.sum(-1)

    def responses(self, rollout: Rollout) -> tuple[ScoredResponse, ...]:
        """The responses of the rollout that was scored, each with what the rewards made of it."""
        mix = _judged(self.mix.masked_fill(~self.valid, torch.nan))
        raw = {name: _judged(scores) for name, scores in self.raw.items()}
        return tuple(
            ScoredResponse(
                sample=rollout.samples[row],
                group=rollout.group_ids[row],
                prompt=rollout.prompts[row].text,
                response=rollout.texts[row],
                stop_reason=rollout.stop_reasons[row],
                score=mix[row],
                rewards={name: scores[row] for name, scores in raw.items()},
            )
            for row in range(len(rollout))
        )


class RewardScorer:
    """Asks each reward provider about a rollout.

    Args:
      rewards: in the recipe's order.
      relay: components are called through it.
      sample_reference: draws a response of the reference model for each prompt of a rollout.
      runtime: the processes.
      updates: how many there will be.
      seed: of the run.
      logprobs: whether a reward asks for those of the sampler.
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
        logprobs: bool = False,
    ) -> None:
        self._logprobs = logprobs
        self._rewards = rewards
        self._relay = relay
        self._sample_reference = sample_reference
        self._seed = seed
        self._runtime = runtime
        self._updates = updates
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
        raw, judged = dict[str, Tensor](), dict[str, Tensor]()
        figures = {reward.instance.name: RewardFigures(len(batch)) for reward in self._rewards}
        for reward in self._rewards:
            name = reward.instance.name
            given = replace(batch, log=figures[name])
            raw[name], judged[name] = self._values(reward, given, nothing)
        valid = self._valid(judged, like=mask[:, 0])
        values, metrics = dict(raw), dict[str, float]()
        for name, chain in self._chains.items() if training else ():
            values[name] = chain.apply(raw[name], judged[name] & valid, batch)
            metrics |= {f"{name}/{key}": value for key, value in chain.metrics().items()}
        gates = self._gates(batch, like=nothing)
        parts = {r.instance.name: r.weight * gates[r.instance.name] * valid for r in self._rewards}
        mix = sum((parts[name][:, None] * values[name] for name in values), nothing)
        self._refuse_infinite(mix, parts, values, batch)
        return Scores(
            rewards=mix,
            valid=valid,
            untransformed=sum((parts[n] * raw[n].sum(-1) for n in raw), nothing.sum(-1)),
            raw={n: found.sum(-1).masked_fill(~judged[n], torch.nan) for n, found in raw.items()},
            weighted={name: parts[name] * found.sum(-1) for name, found in values.items()},
            metrics=metrics,
            logged=self._logged(figures) if training else {},
            entries=() if training else _entries(figures, len(batch)),
        )

    def _logged(self, figures: Mapping[str, RewardFigures]) -> dict[str, tuple[float, float]]:
        """What the rewards logged on this rank, under the names of all ranks. Collective."""
        mine = {
            f"{n}/{key}": pair for n, one in figures.items() for key, pair in one.sums().items()
        }
        names = {name for theirs in self._runtime.gather(sorted(mine)) for name in theirs}
        return {name: mine.get(name, (0.0, 0.0)) for name in sorted(names)}

    def _valid(self, judged: Mapping[str, Tensor], like: Tensor) -> Tensor:
        """[B] whether a response may be learned from; a reward with a weight of 0 has no say."""
        counting = [reward for reward in self._rewards if reward.weight != 0]
        judges = [reward for reward in counting if not self._invalidates(reward)]
        valid = torch.zeros_like(like) if judges else torch.ones_like(like)
        for reward in judges:
            valid |= judged[reward.instance.name]
        for reward in counting:
            if reward.on_none == "invalid" or reward not in judges:
                valid &= judged[reward.instance.name]
        return valid

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
        with component_errors(f"reward {reward.instance}", component, "has_gate"):
            return reward.weight != 0 and bool(type(component).has_gate(component.config))

    def _invalidates(self, reward: WeightedReward) -> bool:
        """Whether its None leaves the response out by itself."""
        component = reward.instance.component
        with component_errors(f"reward {reward.instance}", component, "invalidates"):
            return bool(type(component).invalidates(component.config))

    def _gate(self, reward: WeightedReward, batch: RewardBatch) -> list[float] | None:
        given = Given(batch=batch)
        with self._relay.named("reward", reward.instance, "gate"):
            answer = self._relay.hook.rlframe_gate(provider=reward.instance.component, batch=batch)
        try:
            given.refuse_change()
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
            generator=stream(self._seed, "reward", rollout.update, self._runtime.rank),
            updates=self._updates,
            logprobs=rollout.logprobs if self._logprobs else None,
        )
        draw = self._sample_reference
        if draw is None:
            return batch

        @cache  # providers of one rollout share the reference's responses
        def reference() -> RewardBatch:
            other = draw(rollout)
            return batch.with_responses(other.texts, other.response_ids(), other.stop_reasons)

        return replace(batch, sample_reference=reference)

    def _values(
        self, reward: WeightedReward, batch: RewardBatch, like: Tensor
    ) -> tuple[Tensor, Tensor]:
        """([B, T] what one provider gives each token, checked; [B] whether it judged the response)."""
        instance, lengths = reward.instance, batch.response_lengths
        given, surroundings = Given(batch=batch), Surroundings.of(instance.component)
        answer = self._answer(reward, batch)
        try:
            given.refuse_change()
            surroundings.refuse_change()
            rows = token_scores(answer, lengths)
        except ContractError as error:
            around = self._relay.around("rlframe_score")
            raise RunError(
                f"reward {instance}{around} {error}.\n{described(batch, error.row)}"
            ) from error
        values = torch.zeros_like(like)
        for row, (length, score) in enumerate(zip(lengths, rows, strict=True)):
            if score is not None:
                values[row, length - len(score) : length] = values.new_tensor(score)
        return values, torch.tensor([row is not None for row in rows], device=values.device)

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

        with self._relay.named("reward", instance, "score", detail=detail):
            return answer.result()


def _judged(scores: Tensor) -> list[float | None]:
    """Plain numbers, and None in place of NaN."""
    return [None if math.isnan(score) else score for score in scores.tolist()]


def _entries(figures: Mapping[str, RewardFigures], responses: int) -> list[dict[str, float | str]]:
    return [
        {f"{name}/{key}": x for name, one in figures.items() for key, x in one.row(row).items()}
        for row in range(responses)
    ]
